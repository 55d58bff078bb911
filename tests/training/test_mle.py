"""Maximum-likelihood fine-tuning: what an update costs, and that its gradient is that of the solve it runs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.coupling import added_solves, independent, make_coupling, reflow
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
    ("coupling", "candidates"),
    [
        ("independent", 5), ("minibatch_ot", 5), ("sinkhorn", 5), ("conditional_ot", 5),
        ("nearest", 1), ("nearest", 5), ("inversion", 1), ("inversion", 5), ("reflow", 5),
    ],
)  # fmt: skip
def test_equal_compute_counts_every_forward_pass_of_an_update(nfe: int, coupling: str, candidates: int) -> None:
    net, batch, steps, teacher_nfe = Counting(), 4, 30, 20
    never_typical = make_coupling(coupling, candidates, typical_quantile=1e-9)
    objective = Reconstruction(net, never_typical, nfe, Generators(0), teacher_nfe=teacher_nfe)
    objective(torch.randn(batch, 1), torch.randn(batch, 2, 2)).backward()
    # a backward pass costs two forward passes
    cost = (net.rows + objective.teacher.rows + 2 * net.rows_with_gradient) / batch
    solves = added_solves(coupling, candidates, teacher_nfe / nfe)
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


def test_the_teacher_of_reflow_is_the_net_as_it_was_and_is_not_trained() -> None:
    net, condition = Counting(), torch.zeros(6, 1)
    objective = Reconstruction(net, reflow, 1, generators := Generators(3), teacher_nfe=50)
    with torch.no_grad():
        net.rate.fill_(-2.0)
    x0 = torch.randn(6, 2, 2, generator=Generators(3)["noise"])
    expected = (x0 * (1 - 2.0) - x0 * (1 + 0.3 / 50) ** 50).square().mean()
    loss = objective(condition, torch.full((6, 2, 2), 9.0))  # the data themselves do not matter
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    assert objective.teacher.rate.grad is None
    assert list(generators.state_dict()) == ["noise"]


def test_what_a_coupling_tells_of_itself_is_a_figure_of_the_objective() -> None:
    objective = Reconstruction(Counting(), make_coupling("inversion", 1, typical_quantile=1e-9), 2, Generators(0))
    assert objective.figures == {}
    objective(torch.zeros(4, 1), torch.ones(4, 2, 2))
    assert {name: value.item() for name, value in objective.figures.items()} == {"fallback_share": 1.0}
