"""Measure the gap between training and inference: Theorem 1's bounds beside the true error of a solve.

The reference is the exact marginal field of a finite data set, in float64. ε, L and M are maxima over the solved
trajectories. They are lower estimates of the theorem's suprema, but enough for bounds that hold for these trajectories.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.flow.marginal import MarginalField
from pipeline.ode import dopri5
from pipeline.ode.error_bound import (
    ORDERS,
    StepErrors,
    euler_truncation,
    max_step_bound,
    product_bound,
    uniform_bound,
    variable_bound,
)
from pipeline.ode.fixed_step import STEPS, Field, solve
from pipeline.utils.errors import UserError

_WITHIN_PATH = 64  # parts of a path, at least two for each step; |x''| is evaluated at their ends
_ON_SEGMENT = 9  # points between the true and the numerical state at which the Jacobian is evaluated
_TRUE_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Gap:
    """Error of one solve and its bounds, maxima over the trajectories, in units of the data.

    Attributes:
        nfe: function evaluations.
        error: distance between the numerical and the true end.
        field_error, lipschitz, truncation: ε, L and C of Theorem 1; C is ½M for Euler.
        variable, max_step, product: bounds; infinite if they overflow.
        uniform: as these, but None unless the steps are equal.
        vacuous: whether even the smallest bound is at least the data set's diameter.
    """

    solver: str
    grid: str
    nfe: int
    error: float
    field_error: float
    lipschitz: float
    truncation: float
    variable: float
    uniform: float | None
    max_step: float
    product: float
    vacuous: bool


def measure_gap(true: MarginalField, learned: Field, starts: Tensor, solver: str, kind: str, grid: list[float]) -> Gap:
    """Solve ``learned`` with ``solver`` on ``grid`` from ``starts`` and bound its final distance to the true flow.

    Args:
        learned: v̂(t, x), float64 in and out. starts: x0, (B, D), float64. kind: the grid's name in the result.

    Raises:
        UserError: the numerical solve overflows.
    """
    with torch.no_grad():
        path = _numerical(learned, starts, grid, solver)
        if not path[-1].isfinite().all():
            raise UserError(f"gap: {solver} left the numbers in {len(grid) - 1} steps; more steps are needed")
        truth = _true_path(true, starts, grid)
        errors = _step_errors(true, path, truth, grid, solver)
    bounds = {"variable": variable_bound(errors), "max_step": max_step_bound(errors), "product": product_bound(errors)}
    return Gap(
        solver=solver,
        grid=kind,
        nfe=(len(grid) - 1) * STEPS[solver][1],
        error=_largest(path[-1] - truth[-1]),
        field_error=errors.worst_field_error,
        lipschitz=errors.worst_lipschitz,
        truncation=errors.worst_truncation,
        uniform=uniform_bound(errors) if errors.equal_steps else None,
        vacuous=min(bounds.values()) >= float(torch.cdist(true.points, true.points).max()),
        **bounds,
    )


def measure_adaptive_gap(true: MarginalField, learned: Field, starts: Tensor, end: float, tolerance: float) -> Gap:
    """Measure the gap on the grid that dopri5 accepts for ``learned`` at relative and absolute ``tolerance``.

    The NFE counts only the accepted steps. See ``measure_gap``.
    """
    grid = dopri5.solve(learned, starts, end=end, rtol=tolerance, atol=tolerance).grid
    return measure_gap(true, learned, starts, "dopri5", "adaptive", grid)


def _numerical(field: Field, starts: Tensor, grid: list[float], solver: str) -> list[Tensor]:
    """Solve ``field``; return the states at the grid's times."""
    states = [starts]
    for times in pairwise(grid):
        states.append(solve(field, states[-1], times, solver))
    return states


def _true_path(true: MarginalField, starts: Tensor, grid: list[float]) -> list[Tensor]:
    """Compute the true states at the grid's times."""
    states = [starts]
    for start, end in pairwise(grid):
        solved = dopri5.solve(true, states[-1], start=start, end=end, rtol=_TRUE_TOLERANCE, atol=_TRUE_TOLERANCE)
        states.append(solved.end)
    return states


def _true_acceleration(true: MarginalField, truth: list[Tensor], grid: list[float]) -> np.ndarray:
    """Compute the largest |x''| within each step, (N,), from the true states at the grid's times."""
    steps = len(grid) - 1
    parts = max(2, _WITHIN_PATH // steps)
    times, states = [], []
    for (start, end), state in zip(pairwise(grid), truth[:-1], strict=True):
        fine = torch.linspace(start, end, parts + 1, dtype=torch.float64).tolist()
        within = [state]
        for inner, outer in pairwise(fine):
            within.append(solve(true, within[-1], [inner, (inner + outer) / 2, outer], "rk4"))
        times += fine
        states += within
    at = torch.tensor(times, dtype=torch.float64).repeat_interleave(len(truth[0]))
    size = true.acceleration(at, torch.cat(states)).norm(dim=-1)
    return size.view(steps, -1).amax(dim=1).numpy()


def _step_errors(
    true: MarginalField,
    path: list[Tensor],
    truth: list[Tensor],
    grid: list[float],
    solver: str,
) -> StepErrors:
    """Compute ε_j, L_j and d_j of every step from the states of the numerical and of the true path."""
    field_errors, lipschitz, truncation = [], [], []
    for j, (start, end) in enumerate(pairwise(grid)):

        def true_step(x: Tensor, times: tuple[float, float] = (start, end)) -> Tensor:
            return solve(true, x, times, solver)

        step = end - start
        from_numerical = true_step(path[j])
        field_errors.append(_largest(path[j + 1] - from_numerical) / step)
        lipschitz.append(_increment_lipschitz(true_step, truth[j], path[j], step))
        truncation.append(_largest(truth[j + 1] - true_step(truth[j])))
    bound = np.array(truncation)
    if solver == "euler":  # keep the measured error as a minimum, as |x''| may be larger between its points
        bound = np.maximum(bound, euler_truncation(np.array(grid), _true_acceleration(true, truth, grid)))
    return StepErrors(np.array(grid), np.array(field_errors), np.array(lipschitz), bound, ORDERS[solver])


def _increment_lipschitz(step: Callable[[Tensor], Tensor], truth: Tensor, numerical: Tensor, size: float) -> float:
    """Compute the largest Lipschitz constant of Φ = (step(x) − x) / size between paired states, (B, D) each."""
    dim = truth.shape[1]
    weights = torch.linspace(0, 1, _ON_SEGMENT, dtype=truth.dtype)[:, None, None]
    points = (truth + weights * (numerical - truth)).reshape(-1, dim)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: step(x[None])[0] - x))(points) / size
    largest = float(torch.linalg.matrix_norm(jacobian, ord=2).max())
    apart = (numerical - truth).norm(dim=-1)
    moved = ((step(numerical) - numerical) - (step(truth) - truth)).norm(dim=-1) / size
    # the secants too: the recursion needs these, and the Jacobian may be larger between the points
    far = apart > 1e-8 * truth.norm(dim=-1).clamp(min=1)
    return max(largest, float((moved[far] / apart[far]).max()) if far.any() else 0.0)


def _largest(difference: Tensor) -> float:
    """Norm of the longest row of (B, D)."""
    return float(difference.norm(dim=-1).max())
