"""Solve x' = v(t, x) with fixed steps on any grid and an exact number of function evaluations (NFE)."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Field = Callable[[float, Tensor], Tensor]
"""v(t, x): time as a Python number, state (B, …) → velocity (B, …)."""


def _euler(field: Field, t: float, x: Tensor, h: float) -> Tensor:
    return x + h * field(t, x)


def _midpoint(field: Field, t: float, x: Tensor, h: float) -> Tensor:
    return x + h * field(t + h / 2, x + h / 2 * field(t, x))


def _heun(field: Field, t: float, x: Tensor, h: float) -> Tensor:
    k1 = field(t, x)
    k2 = field(t + h, x + h * k1)
    return x + h / 2 * (k1 + k2)


def _rk4(field: Field, t: float, x: Tensor, h: float) -> Tensor:
    k1 = field(t, x)
    k2 = field(t + h / 2, x + h / 2 * k1)
    k3 = field(t + h / 2, x + h / 2 * k2)
    k4 = field(t + h, x + h * k3)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _dopri5(field: Field, t: float, x: Tensor, h: float) -> Tensor:
    # Dormand & Prince 1980, the fifth-order result; the seventh stage is only for their error estimate
    k1 = field(t, x)
    k2 = field(t + h / 5, x + h / 5 * k1)
    k3 = field(t + h * 3 / 10, x + h * (3 / 40 * k1 + 9 / 40 * k2))
    k4 = field(t + h * 4 / 5, x + h * (44 / 45 * k1 - 56 / 15 * k2 + 32 / 9 * k3))
    x5 = x + h * (19372 / 6561 * k1 - 25360 / 2187 * k2 + 64448 / 6561 * k3 - 212 / 729 * k4)
    k5 = field(t + h * 8 / 9, x5)
    x6 = x + h * (9017 / 3168 * k1 - 355 / 33 * k2 + 46732 / 5247 * k3 + 49 / 176 * k4 - 5103 / 18656 * k5)
    k6 = field(t + h, x6)
    return x + h * (35 / 384 * k1 + 500 / 1113 * k3 + 125 / 192 * k4 - 2187 / 6784 * k5 + 11 / 84 * k6)


Step = Callable[[Field, float, Tensor, float], Tensor]
"""(field, t, x, h) → the state at t + h."""

STEPS: dict[str, tuple[Step, int]] = {
    "euler": (_euler, 1),
    "midpoint": (_midpoint, 2),
    "heun": (_heun, 2),
    "rk4": (_rk4, 4),
    "dopri5": (_dopri5, 6),
}
"""Each solver's step and its number of evaluations. ``dopri5`` is only the step, on a given grid."""

SOLVERS = tuple(STEPS)


def solve(field: Field, x: Tensor, grid: Sequence[float], method: str = "euler") -> Tensor:
    """Integrate ``field`` from ``x`` at ``grid[0]`` to ``grid[-1]``, with one step of ``method`` in each interval.

    Autograd records every operation, so the gradient is that of the discrete map (discretise-then-optimise), not that
    of the continuous flow.

    Args:
        x: initial state, (B, …).
        grid: times, strictly monotone, at least two; decreasing times integrate backwards.
        method: one of ``SOLVERS``.

    Returns:
        The state at ``grid[-1]``, shaped as ``x``.
    """
    step, _ = STEPS[method]
    for t, t_next in pairwise(grid):
        x = step(field, t, x, t_next - t)
    return x


def uniform_grid(nfe: int, method: str = "euler", start: float = 0.0, end: float = 1.0) -> list[float]:
    """Make the evenly spaced grid on [start, end] on which ``method`` takes exactly ``nfe`` evaluations.

    Raises:
        ValueError: ``nfe`` is not a positive multiple of the method's evaluations per step.
    """
    _, evaluations = STEPS[method]
    if nfe < 1 or nfe % evaluations:
        raise ValueError(
            f"{method} spends {evaluations} evaluations a step: nfe = {nfe} is no positive multiple of that"
        )
    return torch.linspace(start, end, nfe // evaluations + 1, dtype=torch.float64).tolist()
