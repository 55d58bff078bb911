"""Build the objectives of the image rows from settings."""

import torch
from torch import Tensor, nn

from pipeline.flow.coupling import make_coupling
from pipeline.flow.image_methods import FLOW_METHODS, ScaledField, path_of
from pipeline.flow.pairing import NO_MODELS, Source
from pipeline.settings.blocks import CoupledUpdates
from pipeline.settings.images import ImageMethod, ImagePretrainSettings
from pipeline.tasks.images import as_float
from pipeline.training.diffusion import NoisePrediction
from pipeline.training.loop import Batches, Objective
from pipeline.training.pretrain import FlowMatching
from pipeline.utils.seeding import Generators


class ScaledMatching(FlowMatching):
    """Flow-matching loss weighted by the inverse square of the path's speed, see ``ScaledField``."""

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, C), data: (B, …)."""
        assert isinstance(self.net, ScaledField)
        pair = self.coupling(data, condition, Source(self.generators["noise"]), NO_MODELS)
        t = torch.rand(len(data), generator=self.generators["time"]).to(data.device)
        x_t, target = self.path.sample(pair.x0, pair.x1, t)
        error = (self.net(t, x_t, condition) - target).flatten(1) / self.net.rate(t)[:, None]
        return error.square().mean()


class SeededDropout(Objective):
    """Objective with the dropout of its net drawn from the stream ``dropout``, which a resume continues.

    Dropout draws from PyTorch's global generator, which is seeded from that stream before every loss.
    """

    def __init__(self, objective: Objective, generators: Generators) -> None:
        super().__init__()
        self.net = objective.net
        self.objective = objective
        self.generators = generators

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, C), data: (B, …)."""
        torch.manual_seed(int(torch.randint(2**62, (), generator=self.generators["dropout"])))
        return self.objective(condition, data)


def pretraining(
    method: ImageMethod, field: nn.Module, settings: ImagePretrainSettings, generators: Generators
) -> Objective:
    """Build the objective that trains ``field``, made by ``make_field``, from scratch."""
    objective: Objective
    if method == "ddpm":
        objective = NoisePrediction(field, generators)
    else:
        kind = ScaledMatching if isinstance(field, ScaledField) else FlowMatching
        coupling = make_coupling(FLOW_METHODS[method].coupling)
        objective = kind(field, path_of(method, settings), coupling, generators)
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in field.modules())
    return SeededDropout(objective, generators) if drops else objective


def windows_of(images: Tensor, recipe: CoupledUpdates) -> Batches:
    """Return fine-tuning data from ``images`` (N, C, H, W), uint8: all if solved ahead, else one for its shape."""
    data = as_float(images if recipe.solves_ahead else images[:1])
    return Batches(torch.zeros(len(data), 0), data)
