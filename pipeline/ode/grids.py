"""Grids of times by name."""

import numpy as np

from pipeline.ode.fixed_step import uniform_grid

GRIDS = ("uniform", "early", "late")
"""Equal steps; steps that grow from the start, which is so solved most finely; the same for the end."""


def time_grid(kind: str, nfe: int, solver: str, end: float = 1.0, *, start: float = 0.0) -> list[float]:
    """Times from ``start`` to ``end`` at which ``solver`` steps to spend ``nfe`` evaluations.

    Args:
        kind: one of ``GRIDS``.

    Raises:
        ValueError: no such kind, or ``nfe`` is no multiple of the solver's evaluations a step.
    """
    even = np.array(uniform_grid(nfe, solver))
    warped = {"uniform": even, "early": even**2, "late": 1 - (1 - even) ** 2}
    if kind not in warped:
        raise ValueError(f"grid: given {kind!r}, allowed: {', '.join(GRIDS)}")
    return [float(time) for time in start + (end - start) * warped[kind]]
