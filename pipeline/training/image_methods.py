"""From settings to what the image rows minimise."""

import torch
from torch import Tensor, nn

from pipeline.blocks import CoupledOptimization
from pipeline.flow.coupling import AHEAD, make_coupling
from pipeline.flow.image_methods import FLOW_METHODS, ScaledField, path_of
from pipeline.flow.pairing import NO_MODELS, Source
from pipeline.image_settings import ImageMethod, ImagePretrainSettings
from pipeline.seeding import Generators
from pipeline.tasks.images import as_float
from pipeline.training.diffusion import NoisePrediction
from pipeline.training.loop import Batches, Objective
from pipeline.training.pretrain import FlowMatching


class ScaledMatching(FlowMatching):
    """The flow-matching loss weighted by the inverse square of the path's speed, see ``ScaledField``."""

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, …) → scalar loss."""
        assert isinstance(self.net, ScaledField)
        pair = self.coupling(data, condition, Source(self.generators["noise"]), NO_MODELS)
        t = torch.rand(len(data), generator=self.generators["time"]).to(data.device)
        x_t, target = self.path.sample(pair.x0, pair.x1, t)
        error = (self.net(t, x_t, condition) - target).flatten(1) / self.net.rate(t)[:, None]
        return error.square().mean()


def pretraining(
    method: ImageMethod, field: nn.Module, settings: ImagePretrainSettings, generators: Generators
) -> Objective:
    """The training of ``field``, made by ``make_field``, from scratch."""
    if method == "ddpm":
        return NoisePrediction(field, generators)
    kind = ScaledMatching if isinstance(field, ScaledField) else FlowMatching
    return kind(field, path_of(method, settings), make_coupling(FLOW_METHODS[method].coupling), generators)


def solves_ahead(recipe: CoupledOptimization) -> bool:
    """Whether the solves that its coupling asks for are made before training."""
    return recipe.coupling in AHEAD and recipe.pairs_ahead > 0


def windows_of(images: Tensor, recipe: CoupledOptimization) -> Batches:
    """Images (N, C, H, W), uint8, as fine-tuning is given its data: all of them where solves are made ahead, a noise
    or a solve for each; otherwise one, of whose shape it makes use."""
    data = as_float(images if solves_ahead(recipe) else images[:1])
    return Batches(torch.zeros(len(data), 0), data)
