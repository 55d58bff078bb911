"""Maximum-likelihood fine-tuning: what an update costs, and that its gradient is that of the solve it runs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.coupling import independent, make_coupling
from pipeline.ode.gradient import Gradient
from pipeline.seeding import Generators
from pipeline.training.mle import FM_UPDATE, Reconstruction, equal_compute_steps


class Counting(nn.Module):
    """A linear field that counts the rows it evaluates, and of those the ones that a backward pass follows."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.3))
        self.rows = self.rows_with_gradient = 0

    def forward(self, _t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        self.rows += len(x)
        self.rows_with_gradient += len(x) * torch.is_grad_enabled()
        return self.rate * x


@pytest.mark.parametrize("nfe", [1, 3, 16])
@pytest.mark.parametrize(
    ("coupling", "candidates", "solves"),
    [("independent", 1, 0), ("minibatch_ot", 1, 0), ("nearest", 1, 0), ("nearest", 5, 5)],
)
def test_equal_compute_counts_every_forward_pass_of_an_update(
    nfe: int, coupling: str, candidates: int, solves: int
) -> None:
    net, batch, steps = Counting(), 4, 30
    objective = Reconstruction(net, make_coupling(coupling, candidates), nfe, Generators(0))
    objective(torch.randn(batch, 1), torch.randn(batch, 2, 2)).backward()
    # a backward pass costs two forward passes
    cost = (net.rows + 2 * net.rows_with_gradient) / batch
    assert equal_compute_steps(steps, nfe, solves) == round(steps * cost / FM_UPDATE)


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
@pytest.mark.parametrize("last_steps", [None, 1, 3])
def test_equal_compute_counts_what_is_computed_again_and_what_is_not_followed(
    solver: str, gradient: Gradient, last_steps: int | None
) -> None:
    net, batch, steps, nfe = Counting(), 4, 30, 16
    how: dict[str, Any] = {"solver": solver, "gradient": gradient, "last_steps": last_steps}
    loss = Reconstruction(net, independent, nfe, Generators(0), **how)(torch.randn(batch, 1), torch.randn(batch, 2, 2))
    followed = net.rows_with_gradient  # the backward pass adds what it computes again
    loss.backward()
    cost = (net.rows + 2 * followed) / batch
    assert equal_compute_steps(steps, nfe, 0, **how) == round(steps * cost / FM_UPDATE)


@pytest.mark.parametrize("nfe", [1, 4])
def test_the_loss_and_its_gradient_are_those_of_the_discrete_solve(nfe: int) -> None:
    net, condition, data = Counting(), torch.randn(6, 1), torch.randn(6, 2, 2)
    Reconstruction(net, independent, nfe, generators := Generators(3))(condition, data).backward()
    assert list(generators.state_dict()) == ["noise"]
    x0 = torch.randn(data.shape, generator=Generators(3)["noise"])
    growth = 1 + 0.3 / nfe
    expected = 2 * (growth**nfe * x0 - data) * growth ** (nfe - 1) * x0
    assert net.rate.grad is not None
    assert net.rate.grad.item() == pytest.approx(expected.mean().item(), rel=1e-4)
