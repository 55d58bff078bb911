"""The gap between a learned field's solve and the true flow, for fields with known answers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation.gap import Gap, measure_adaptive_gap, measure_gap
from pipeline.flow.marginal import MarginalField, eight_points, two_points
from pipeline.flow.path import i_cfm
from pipeline.ode.fixed_step import Field, solve
from pipeline.ode.grids import GRIDS, time_grid
from pipeline.utils.errors import UserError

END = 0.9
TRUE = MarginalField(eight_points(), i_cfm(0.3))


def starts(dim: int = 2) -> Tensor:
    return torch.randn(32, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def perturbed(t: float, x: Tensor) -> Tensor:
    """The true field, off by at most 0.2 in each of two directions."""
    return TRUE(t, x) + 0.2 * torch.sin(5 * x + t)


def measured(solver: str, kind: str, nfe: int, learned: Field = perturbed) -> Gap:
    return measure_gap(TRUE, learned, starts(), solver, kind, time_grid(kind, nfe, solver, END))


@pytest.fixture(scope="module")
def fine() -> Tensor:
    """Return the end of the true flow."""
    return solve(TRUE, starts(), np.linspace(0, END, 2001).tolist(), "rk4")


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4"])
def test_no_bound_is_below_the_error(solver: str, kind: str, fine: Tensor) -> None:
    gap = measured(solver, kind, 16)
    ours = solve(perturbed, starts(), time_grid(kind, 16, solver, END), solver)
    assert gap.error == pytest.approx(float((ours - fine).norm(dim=1).max()), rel=1e-6)
    assert gap.error <= gap.product <= min(gap.variable, gap.max_step)
    assert (gap.uniform is None) == (kind != "uniform")
    assert gap.uniform is None or gap.product <= gap.uniform
    assert gap.field_error <= 0.3 or solver != "euler"
    assert gap.product < 100 * gap.error


def test_gap_of_the_true_field_is_the_solver_error() -> None:
    coarse, fine = measured("rk4", "uniform", 32, TRUE), measured("rk4", "uniform", 64, TRUE)
    assert coarse.field_error == fine.field_error == 0
    assert 8 < coarse.error / fine.error < 32  # fourth order
    euler = [measured("euler", "uniform", nfe, TRUE).error for nfe in (64, 128)]
    assert 1.7 < euler[0] / euler[1] < 2.3


def test_error_on_the_adaptive_grid_is_bounded() -> None:
    gap = measure_adaptive_gap(TRUE, perturbed, starts(), END, 1e-4)
    assert gap.error <= gap.product <= gap.variable and gap.uniform is None
    assert gap.nfe % 6 == 0 and gap.grid == "adaptive"


def test_a_steep_field_makes_the_bounds_vacuous() -> None:
    steep = MarginalField(two_points(), i_cfm(0.05))

    def learned(t: float, x: Tensor) -> Tensor:
        return steep(t, x) + 0.5

    gap = measure_gap(steep, learned, starts(1), "euler", "uniform", time_grid("uniform", 16, "euler", END))
    assert gap.vacuous and gap.product > 2 > gap.error
    assert not measured("rk4", "uniform", 64, TRUE).vacuous


def test_grids_place_their_short_steps_as_named() -> None:
    steps = {kind: np.diff(time_grid(kind, 8, "euler", END)) for kind in GRIDS}
    assert all(len(of_kind) == 8 and of_kind.sum() == pytest.approx(END) for of_kind in steps.values())
    assert np.ptp(steps["uniform"]) < 1e-12
    assert (np.diff(steps["early"]) > 0).all() and (np.diff(steps["late"]) < 0).all()
    assert len(time_grid("late", 8, "rk4", END)) == 3
    with pytest.raises(ValueError, match="allowed: uniform, early, late"):
        time_grid("cosine", 8, "euler", END)


def test_diverging_solve_is_refused() -> None:
    with pytest.raises(UserError, match="euler left the numbers in 4 steps"):
        measured("euler", "uniform", 4, lambda _t, x: x * float("inf"))
