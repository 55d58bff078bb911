"""Inference never uses dropout and leaves each model in its mode."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluation.diffusion_policy import DiffusionPolicy
from pipeline.evaluation.diversity import measure_diversity
from pipeline.evaluation.generation import image_blocks
from pipeline.evaluation.image_models import DiffusionModel, FlowModel, ImageModel, ResidualModel
from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.residual_policy import ResidualPolicy
from pipeline.evaluation.robustness import Disturbed
from pipeline.nets.residual import PlainResidual
from pipeline.settings import schema
from pipeline.tasks.normalizer import Normalizer
from pipeline.training.data import PreparedData
from pipeline.training.diversity_monitor import DiversityMonitor
from pipeline.training.fine_tune import fine_tune, sample
from pipeline.training.selection import held_out_loss
from pipeline.training.teacher import Teacher
from pipeline.utils.code_deps import ROOT

GENERATOR = torch.Generator().manual_seed(0)
NOISE, CONDITION = torch.randn(3, 4, 2, generator=GENERATOR), torch.randn(3, 2, generator=GENERATOR)
PIXELS = torch.randn(3, 1, 4, 4, generator=GENERATOR)
DATA = PreparedData(CONDITION, NOISE, CONDITION, NOISE, Normalizer(2), Normalizer(2))


class Dropping(nn.Module):
    """A field with dropout, and with a part frozen in evaluation mode as normalisations often are."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))
        self.drop, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()

    def forward(self, t: Tensor, x: Tensor, condition: Tensor | None = None) -> Tensor:
        del t, condition
        return self.frozen(self.drop(self.rate * x))


class Sampling(nn.Module):
    """A sampler of a user, with the signature of either protocol."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.device = net, torch.device("cpu")

    def sample(self, first: Tensor, second: Any, third: Any) -> Any:
        """Diversity passes condition, noise, nfe; generation passes noise, solver, generator."""
        return self.net(0.0, second) if isinstance(third, int) else (self.net(0.0, first), 1.0)


def policy(net: nn.Module, kind: type[FlowPolicy] = FlowPolicy) -> FlowPolicy:
    shapes = {"n_obs_steps": 1, "horizon": 4, "n_action_steps": 2}
    return kind(net, lambda states: np.float32(states), Normalizer(2), Normalizer(2), **shapes)  # type: ignore[arg-type]


def residual_policy(net: nn.Module) -> ResidualPolicy:
    return ResidualPolicy(policy(net), PlainResidual(net), [1.0, 1.5])


def acted(acting: Any) -> Tensor:
    return torch.from_numpy(acting.act(CONDITION[:, None].numpy(), NOISE.numpy()))


def drawn(model: ImageModel, solver: str) -> Tensor:
    return model.sample(PIXELS, solver, torch.Generator().manual_seed(0))[0]


def generated(sampler: Any) -> Tensor:
    return next(image_blocks(sampler, "euler-2", shape=(1, 4, 4), n_samples=3, batch=3, seed=0))[0]


def figures(diversity: Any) -> Tensor:
    return torch.tensor([diversity.spread, diversity.best_of_k, diversity.reconstruction_error])


PRETRAIN = schema.load(ROOT / "params.yaml").starter.task("pusht").pretrain
INFERENCES: dict[str, Callable[[nn.Module], Tensor]] = {
    "sample": lambda net: sample(net, NOISE, nfe=2),
    "policy": lambda net: acted(policy(net).acting(2)),
    "policy's sample": lambda net: policy(net).sample(CONDITION, NOISE, 2),
    "disturbed": lambda net: acted(Disturbed(policy(net), 2, "action_noise", 0.1)),
    "residual policy": lambda net: acted(residual_policy(net).acting(3)),
    "anchor": lambda net: residual_policy(net).anchor(CONDITION, NOISE, 3),
    "ddim": lambda net: acted(DiffusionPolicy(policy(net), "ddim").acting(2)),
    "ddpm": lambda net: DiffusionPolicy(policy(net), "ddpm").sample(CONDITION, NOISE[:, None].expand(3, 2, 4, 2), 2),
    "flow of images": lambda net: drawn(FlowModel(net), "euler-2"),
    "flow of images, dopri5": lambda net: drawn(FlowModel(net), "dopri5"),
    "diffusion of images": lambda net: drawn(DiffusionModel(net), "euler-2"),
    "residual of images": lambda net: drawn(ResidualModel(FlowModel(net), PlainResidual(net), [1.0, 1.5]), "euler-3"),
    "teacher": lambda net: Teacher(net, 4).teach(NOISE, CONDITION),
    "teacher, inverse": lambda net: Teacher(net, 4).invert(NOISE, CONDITION),
    "diversity": lambda net: figures(measure_diversity(Sampling(net), CONDITION, NOISE, 1)),
    "diversity monitor": lambda net: figures(DiversityMonitor(policy(net), DATA, 0).measure(policy(net), 2).diversity),
    "generation": lambda net: generated(Sampling(net)),
    "held-out loss": lambda net: torch.tensor(held_out_loss(policy(net), DATA, PRETRAIN, 0)),
}


@pytest.mark.parametrize("inference", INFERENCES)
@torch.no_grad()
def test_inference_disables_dropout_and_restores_the_mode(inference: str) -> None:
    torch.manual_seed(0)
    net = Dropping()
    modes = {name: part.training for name, part in net.named_modules()}
    once, again = (INFERENCES[inference](net) for _ in range(2))
    assert torch.equal(once, again)
    assert {name: part.training for name, part in net.named_modules()} == modes
    assert torch.equal(INFERENCES[inference](net.eval()), once)


def test_fine_tuning_disables_dropout_and_restores_the_mode() -> None:
    torch.manual_seed(0)
    net, losses = Dropping(), list[float]()
    for given in (net, Dropping().eval()):
        fine_tune(
            given, NOISE, nfe=2, steps=2, batch_size=2, coupling="reflow",
            log=lambda metrics, _step: losses.append(metrics["loss"]),
        )  # fmt: skip
    assert losses[0] == losses[1]
    assert net.training and net.drop.training and not net.frozen.training


def test_acting_between_updates_restores_the_training_mode() -> None:
    acting = (trained := policy(Dropping())).acting(2)
    trained.eval()
    expected = acted(acting)
    trained.train()  # after it was asked to act
    assert torch.equal(acted(acting), expected)
    assert trained.training and trained.net.training
