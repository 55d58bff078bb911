"""The flow map starts as its flow and learns the average velocity between two times."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.objective import reconstruct
from pipeline.nets.mlp import MLP
from pipeline.nets.unet1d import ConditionalUnet1D
from pipeline.ode.fixed_step import uniform_grid
from pipeline.training.flow_map import (
    STEP_FEATURES,
    FlowMapField,
    LagrangianSelfDistillation,
    average_velocity,
    step_features,
    widened,
)
from pipeline.utils.seeding import Generators


def mlp(condition: int) -> MLP:
    torch.manual_seed(3)
    return MLP(4, 2, condition, width=16, depth=1, expansion=2, time_features=8)


def drawn(rows: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    t, x = torch.rand(rows, generator=generator), torch.randn(rows, 4, 2, generator=generator)
    return t, x, torch.randn(rows, 3, generator=generator)


def test_widened_map_equals_its_flow_at_every_step_length() -> None:
    flow, (t, x, condition) = mlp(3), drawn()
    net = widened(flow, mlp(3 + STEP_FEATURES))
    for h in (0.0, 0.3, 1.0):
        velocity = average_velocity(net, t, torch.full_like(t, h), x, condition)
        assert torch.allclose(velocity, flow(t, x, condition), atol=1e-6)
    for steps in (1, 4):
        mapped = reconstruct(FlowMapField(net, steps), x, condition, uniform_grid(steps))
        assert torch.allclose(mapped, reconstruct(flow, x, condition, uniform_grid(steps)), atol=1e-5)


def test_features_of_a_zero_step_are_zero() -> None:
    assert torch.equal(step_features(torch.zeros(2)), torch.zeros(2, STEP_FEATURES))
    assert step_features(torch.tensor([1e-3])).abs().sum() > 0


def test_widening_needs_the_same_net_with_a_longer_condition() -> None:
    def unet(condition: int) -> nn.Module:
        return ConditionalUnet1D(4, 2, condition, channels=[4, 8], kernel=3, groups=2, time_features=8)

    widened(unet(3), unet(3 + STEP_FEATURES))
    with pytest.raises(ValueError, match="with a longer condition"):
        widened(mlp(3), MLP(4, 2, 3, width=8, depth=1, expansion=2, time_features=8))


class Exact(nn.Module):
    """The map of x' = −x from any time on: X(x) = e^(−h) x, so u = (e^(−h) − 1) / h · x; h is the first feature."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = nn.Parameter(torch.tensor(error, dtype=torch.float64))

    def forward(self, _t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        h = condition[:, -STEP_FEATURES][:, None, None]
        whole = torch.where(h > 1e-6, torch.expm1(-h) / h.clamp(min=1e-6), -1 + h / 2)
        return (whole + self.error * h) * x


def test_distillation_error_is_zero_only_for_the_exact_map() -> None:
    """With an error e: u = (exact + e h) x and X = (exp(−h) + e h²) x; d/dh X − u(0, X) = (2 e h + e h²) x."""
    _, x, condition = (part.double() for part in drawn())
    h = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    s = torch.zeros_like(h)
    exact = LagrangianSelfDistillation(Exact(), 0.5, 10, Generators(0))
    assert exact._distilled(s, h, x, condition).max() < 1e-20
    wrong = LagrangianSelfDistillation(Exact(0.1), 0.5, 10, Generators(0))
    expected = ((0.2 * h + 0.1 * h**2)[:, None, None] * x).square().flatten(1).mean(1)
    assert torch.allclose(wrong._distilled(s, h, x, condition), expected)


def test_longest_step_grows_with_training_and_is_restored() -> None:
    objective = LagrangianSelfDistillation(mlp(3 + STEP_FEATURES), 0.5, 10, Generators(0))
    _, x, condition = drawn()
    seen = []
    for _ in range(10):
        seen.append(objective.longest)
        objective(condition, x)
    assert seen[:3] == [0.0, 0.0, 0.0] and seen[-3:] == [1.0, 1.0, 1.0]
    assert seen == sorted(seen)
    assert "distilled" in objective.metrics
    again = LagrangianSelfDistillation(mlp(3 + STEP_FEATURES), 0.5, 10, Generators(0))
    again.beside.load_state_dict(objective.beside.state_dict())
    assert again.longest == 1.0


def test_loss_without_steps_is_flow_matching() -> None:
    net = widened(mlp(3), mlp(3 + STEP_FEATURES))
    objective = LagrangianSelfDistillation(net, 0.5, 10, generators := Generators(0))
    _, x, condition = drawn()
    loss = objective(condition, x)
    generators = Generators(0)
    noise = torch.randn(x.shape, generator=generators["noise"])
    t = torch.rand(len(x), generator=generators["time"])
    at = (1 - t[:, None, None]) * noise + t[:, None, None] * x
    assert loss.item() == pytest.approx((mlp(3)(t, at, condition) - (x - noise)).square().mean().item(), rel=1e-5)
