"""Make grids of times by name."""

import numpy as np

from pipeline.ode.fixed_step import uniform_grid

GRIDS = ("uniform", "early", "late")
"""Equal steps; steps that are shortest at the start; steps that are shortest at the end."""


def time_grid(kind: str, nfe: int, solver: str, end: float = 1.0, *, start: float = 0.0) -> list[float]:
    """Make the grid from ``start`` to ``end`` on which ``solver`` takes ``nfe`` evaluations.

    Args:
        kind: one of ``GRIDS``.

    Raises:
        ValueError: the kind is unknown, or ``nfe`` is not a multiple of the solver's evaluations per step.
    """
    even = np.array(uniform_grid(nfe, solver))
    warped = {"uniform": even, "early": even**2, "late": 1 - (1 - even) ** 2}
    if kind not in warped:
        raise ValueError(f"grid: given {kind!r}, allowed: {', '.join(GRIDS)}")
    return [float(time) for time in start + (end - start) * warped[kind]]
