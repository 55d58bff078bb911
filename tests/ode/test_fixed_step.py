"""Fixed-step solvers against solutions in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pipeline.ode.fixed_step import SOLVERS, solve, uniform_grid

ORDER = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "dopri5": 5}
EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "dopri5": 6}
X0 = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)


def logistic_with_time(t: float, x: Tensor) -> Tensor:
    """x' = (1 + t) x (1 − x/3): nonlinear and not autonomous."""
    return (1 + t) * x * (1 - x / 3)


def solution(t: float) -> Tensor:
    growth = math.exp(t + t * t / 2)
    return 3 * X0 * growth / (3 - X0 + X0 * growth)


@pytest.mark.parametrize("method", SOLVERS)
def test_the_error_falls_with_the_methods_order(method: str) -> None:
    errors = []
    for steps in (16, 32, 64):
        grid = uniform_grid(steps * EVALUATIONS[method], method)
        errors.append((solve(logistic_with_time, X0, grid, method) - solution(1.0)).abs().max().item())
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert slopes == pytest.approx([ORDER[method]] * 2, abs=0.15)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_nfe_is_spent_exactly(method: str, steps: int) -> None:
    calls = 0

    def counting(t: float, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return logistic_with_time(t, x)

    nfe = steps * EVALUATIONS[method]
    solve(counting, X0, uniform_grid(nfe, method), method)
    assert calls == nfe


@pytest.mark.parametrize("method", SOLVERS)
def test_an_uneven_grid_solves_the_same_equation(method: str) -> None:
    fine = [(i / 4000) ** 1.5 for i in range(4001)]
    assert torch.allclose(solve(logistic_with_time, X0, fine, method), solution(1.0), atol=1e-3)


def test_a_decreasing_grid_inverts_the_flow() -> None:
    forward = uniform_grid(400, "rk4")
    there = solve(logistic_with_time, X0, forward, "rk4")
    assert torch.allclose(solve(logistic_with_time, there, forward[::-1], "rk4"), X0, atol=1e-9)


@pytest.mark.parametrize("method", SOLVERS)
def test_the_gradient_is_that_of_the_discrete_map(method: str) -> None:
    grid = uniform_grid(4 * EVALUATIONS[method], method)
    assert torch.autograd.gradcheck(
        lambda x, a: solve(lambda t, y: torch.tanh(a * y) + t, x, grid, method),
        (X0.clone().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)),
    )


def test_uniform_grids_are_even_and_end_where_asked() -> None:
    assert uniform_grid(4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert uniform_grid(4, "heun", start=1.0, end=0.0) == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(("nfe", "method"), [(0, "euler"), (-4, "rk4"), (3, "heun"), (6, "rk4")])
def test_nfe_not_a_multiple_of_the_stages_is_refused(nfe: int, method: str) -> None:
    with pytest.raises(ValueError, match=f"{method} spends {EVALUATIONS[method]} evaluations a step: nfe = {nfe} "):
        uniform_grid(nfe, method)
