"""Training of residuals: the frozen base, the loss of both solves, and stability penalties."""

import pytest
import torch

from pipeline.nets.persidskii import PersidskiiResidual
from pipeline.ode.fixed_step import solve, uniform_grid
from pipeline.settings.schema import PersidskiiSettings, ResidualRecipe
from pipeline.stability.parameterization import diagonal_dominance_penalty
from pipeline.training.checkpoint import build_policy
from pipeline.training.loop import Batches, train
from pipeline.training.residual import ResidualReconstruction, residual_training
from pipeline.training.residual_checkpoint import make_residual_policy
from pipeline.utils.seeding import Generators
from tests.evaluation.test_residual_policy import RECORD
from tests.nets.test_residual_nets import recipe

NFE = 6


def windows() -> Batches:
    generator = torch.Generator().manual_seed(3)
    return Batches(torch.randn(64, 6, generator=generator), 0.3 * torch.randn(64, 4, 2, generator=generator))


def training(given: ResidualRecipe) -> tuple[ResidualReconstruction, Batches]:
    policy = make_residual_policy(build_policy(RECORD), given, seed=0)
    return residual_training(policy.residual, policy.net, given, NFE, Generators(0, "test"), windows())


@pytest.mark.parametrize("coupling", ["independent", "nearest", "reflow"])
@pytest.mark.parametrize("ahead", [0, 1])
def test_only_the_residual_is_trained(coupling: str, ahead: int) -> None:
    given = recipe(sees_noise=True).model_copy(update={"coupling": coupling, "precomputed_pairs": ahead})
    objective, batches = training(given)
    condition, data = batches.draw(8, torch.Generator().manual_seed(0))
    objective(condition, data).backward()
    assert all(parameter.grad is None for parameter in objective.base.parameters())
    assert any(parameter.grad is not None for parameter in objective.net.parameters())
    before = [parameter.clone() for parameter in objective.base.parameters()]
    train(objective, batches, given, Generators(0, "train"))
    assert all(torch.equal(a, b) for a, b in zip(before, objective.base.parameters(), strict=True))


def test_loss_is_the_mean_squared_error_at_the_end_of_both_solves() -> None:
    given = recipe().model_copy(update={"coupling": "independent"})
    objective, batches = training(given)
    assert isinstance(objective.net, PersidskiiResidual)
    torch.nn.init.normal_(objective.net.input_net.out.weight, std=0.3)
    condition, data = batches.draw(8, torch.Generator().manual_seed(0))
    loss = objective(condition, data)
    x0 = torch.randn(data.shape, generator=Generators(0, "test")["noise"])
    with torch.no_grad():
        anchor = solve(lambda t, x: objective.base(x.new_full((8,), t), x, condition), x0, uniform_grid(2))
        field = objective.net.begin(anchor, condition, x0)
        x, h = anchor, 0.25
        for _ in range(4):
            x = x + h * field(0.0, x)
    torch.testing.assert_close(loss.detach(), (x - data).square().mean())


def test_training_halves_the_loss() -> None:
    given = recipe(sees_noise=True).model_copy(update={"coupling": "reflow", "steps": 150, "precomputed_pairs": 2})
    objective, batches = training(given)
    condition, data = batches.draw(128, torch.Generator().manual_seed(0))
    first = objective(condition, data).item()
    train(objective, batches, given, Generators(0, "train"))
    assert objective(condition, data).item() < 0.5 * first


@pytest.mark.parametrize("stability", ["step_penalty", "contraction_penalty", "dominance_penalty"])
def test_training_reduces_the_stability_penalty(stability: str) -> None:
    given = recipe(stability).model_copy(update={"coupling": "independent", "steps": 200, "lr": 3e-2})
    settings = given.net
    assert isinstance(settings, PersidskiiSettings)
    given = given.model_copy(update={"net": settings.model_copy(update={"rate": 3.0, "penalty_weight": 10.0})})
    objective, batches = training(given)
    assert isinstance(objective.net, PersidskiiResidual)
    with torch.no_grad():
        objective.net.source.A0.mul_(0.2)  # type: ignore[union-attr, operator]
    objective(*batches.draw(8, torch.Generator()))
    first = objective.metrics["penalty"].item()
    train(objective, batches, given, Generators(0, "train"))
    assert objective.metrics["penalty"].item() < 0.05 * first
    if stability == "dominance_penalty":
        assert diagonal_dominance_penalty(objective.net.matrices()[0], 3.0).item() < 0.5


class _Dropping(torch.nn.Module):
    """A field with dropout."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.drop = net, torch.nn.Dropout(0.5)

    def forward(self, t: torch.Tensor, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.drop(self.net(t, x, condition))


@pytest.mark.parametrize("coupling", ["nearest", "reflow"])
def test_dropout_of_the_frozen_base_is_off_during_residual_training(coupling: str) -> None:
    given = recipe().model_copy(update={"coupling": coupling, "precomputed_pairs": 0})

    def loss(training_mode: bool) -> float:
        policy = make_residual_policy(build_policy(RECORD), given, seed=0)
        base = _Dropping(policy.net).train(training_mode)
        objective, batches = residual_training(policy.residual, base, given, NFE, Generators(0), windows())
        return objective(*batches.draw(8, torch.Generator().manual_seed(0))).item()

    assert loss(True) == loss(False)
