"""Fixed-step solvers for x' = v(t, x) on any grid, with an exact count of function evaluations (NFE)."""

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


_STEPS: dict[str, tuple[Callable[[Field, float, Tensor, float], Tensor], int]] = {
    "euler": (_euler, 1),
    "midpoint": (_midpoint, 2),
    "heun": (_heun, 2),
    "rk4": (_rk4, 4),
}
SOLVERS = tuple(_STEPS)


def solve(field: Field, x: Tensor, grid: Sequence[float], method: str = "euler") -> Tensor:
    """Integrate ``field`` from ``x`` at ``grid[0]`` to ``grid[-1]``, one step of ``method`` an interval.

    Every operation is recorded by autograd, so the gradient of the result is that of the discrete map
    (discretise-then-optimise), not of the continuous flow.

    Args:
        x: initial state, (B, …).
        grid: times, strictly monotone, at least two; decreasing times integrate backwards.
        method: one of ``SOLVERS``.

    Returns:
        The state at ``grid[-1]``, shaped as ``x``.
    """
    step, _ = _STEPS[method]
    for t, t_next in pairwise(grid):
        x = step(field, t, x, t_next - t)
    return x


def uniform_grid(nfe: int, method: str = "euler", start: float = 0.0, end: float = 1.0) -> list[float]:
    """The evenly spaced grid on [start, end] on which ``method`` spends exactly ``nfe`` evaluations.

    Raises:
        ValueError: ``nfe`` is not a positive multiple of the method's evaluations a step.
    """
    _, evaluations = _STEPS[method]
    if nfe < 1 or nfe % evaluations:
        raise ValueError(
            f"{method} spends {evaluations} evaluations a step: nfe = {nfe} is no positive multiple of that"
        )
    return torch.linspace(start, end, nfe // evaluations + 1, dtype=torch.float64).tolist()
