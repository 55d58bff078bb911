"""Fields with shared conditions equal fields with one condition per sample."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.diffusion import probability_flow
from pipeline.flow.image_methods import ScaledField
from pipeline.flow.objective import reconstruct
from pipeline.flow.path import variance_preserving
from pipeline.nets.mlp import MLP
from pipeline.nets.sharing import in_solve, repeated
from pipeline.ode.fixed_step import uniform_grid

CONDITIONS, SAMPLES = 3, 4
ROWS = CONDITIONS * SAMPLES


class Alone(nn.Module):
    """A field that takes a time and a condition for each row, and nothing else."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        assert len(t) == len(x) == len(condition)
        return self.field(t, x, condition)


def mlp(condition_dim: int) -> nn.Module:
    torch.manual_seed(0)
    net = MLP(4, 2, condition_dim, width=16, depth=2, expansion=2, time_features=8)
    return net.double()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("condition_dim", [5, 0])
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: ScaledField(net, variance_preserving())])
def test_solve_with_shared_conditions_equals_one_condition_per_sample(condition_dim: int, wrap: object) -> None:
    field = wrap(mlp(condition_dim))  # type: ignore[operator]
    x0 = torch.randn(ROWS, 4, 2, dtype=torch.float64).requires_grad_()
    condition = torch.randn(CONDITIONS, condition_dim, dtype=torch.float64)
    ends = [reconstruct(net, x0, condition, uniform_grid(5)) for net in (field, Alone(field))]
    assert torch.allclose(*ends, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(end.square().sum(), [x0, *field.parameters()], allow_unused=True) for end in ends]
    for shared, alone in zip(*gradients, strict=True):
        assert shared is alone is None or torch.allclose(shared, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_probability_flow_supports_shared_conditions() -> None:
    net = mlp(0)
    x = torch.randn(ROWS, 4, 2, dtype=torch.float64)
    none = x.new_empty(ROWS, 0)
    shared, alone = (in_solve(probability_flow(each), none, ROWS)(0.4, x) for each in (net, Alone(net)))
    assert torch.allclose(shared, alone, rtol=1e-12, atol=1e-12)


def test_conditions_are_repeated_in_succession() -> None:
    assert repeated(torch.tensor([[1.0], [2.0]]), 4).tolist() == [[1.0], [1.0], [2.0], [2.0]]
