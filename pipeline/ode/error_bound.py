"""Bound the distance between a learned field's numerical solve and the true flow: Theorem 1 (arXiv 2510.02081).

Write e_j for the distance between the numerical state and the true path at t_j. A one-step solver moves by
τ_j Φ(t_j, x), Φ = v for Euler. Inserting the true field's step from the numerical and from the true state gives

    e_{j+1} ≤ (1 + L_j τ_j) e_j + ε_j τ_j + d_j                                                            (*)

with ε_j the error of the learned Φ at the numerical state, L_j a Lipschitz constant of the true Φ(t_j, ·) between
the two states, and d_j the step's truncation error on the true path. For Euler ε_j is |v − v̂|, L_j the field's own
constant, and d_j ≤ ½ M_j τ_j² for |x''| ≤ M_j: the paper's setting. A solver of order p has d_j ≤ C τ_j^(p+1) for
smooth fields. With Φ in place of v the same recursion holds (Henrici 1962), so the bounds apply to it too.

There are four forms of the bound. All follow from (*); the product is its exact solution and so the smallest.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "dopri5": 5}
"""p of each solver in ``fixed_step``: its truncation error is of order τ^(p+1)."""


@dataclass(frozen=True)
class StepErrors:
    """The constants of a solve's N steps.

    Attributes:
        times: t_0 … t_N, increasing.
        field_error, lipschitz, truncation: ε_j, L_j and d_j, (N,) each.
        order: p of the solver.
    """

    times: Vector
    field_error: Vector
    lipschitz: Vector
    truncation: Vector
    order: int

    @property
    def steps(self) -> Vector:
        """τ_j, (N,)."""
        return np.diff(self.times)

    @property
    def equal_steps(self) -> bool:
        """Whether all steps have the same length, up to rounding."""
        return np.allclose(self.steps, self.steps[0], rtol=1e-9, atol=0)

    @property
    def worst_field_error(self) -> float:
        """ε, the largest over all steps."""
        return float(self.field_error.max())

    @property
    def worst_lipschitz(self) -> float:
        """L, the largest over all steps."""
        return float(self.lipschitz.max())

    @property
    def worst_truncation(self) -> float:
        """C = max d_j / τ_j^(p+1); ½M for Euler."""
        return float((self.truncation / self.steps ** (self.order + 1)).max())


def euler_truncation(times: Vector, acceleration: Vector) -> Vector:
    """Compute ½ M_j τ_j², (N,), from the times (N + 1,) and the bounds M_j (N,) on |x''| within each step."""
    return 0.5 * acceleration * np.diff(times) ** 2


def product_bound(errors: StepErrors, start: float = 0.0) -> float:
    """Compute Σ_j (ε_j τ_j + d_j) Π_{k>j} (1 + L_k τ_k) + |e_0| Π_k (1 + L_k τ_k), with each step's own constants.

    Args:
        start: |e_0|, the error of the initial state, here and in the other bounds.
    """
    with np.errstate(over="ignore"):
        error = np.float64(start)
        for step, field_error, lipschitz, truncation in zip(
            errors.steps, errors.field_error, errors.lipschitz, errors.truncation, strict=True
        ):
            error = error * (1 + lipschitz * step) + field_error * step + truncation
    return float(error)


def variable_bound(errors: StepErrors, start: float = 0.0) -> float:
    """Compute the paper's (4), for any grid: e^{LT} |e_0| + e^{L (t_{N−1} − t_0)} Σ_j (ε τ_j + C τ_j^{p+1}).

    T = t_N − t_0. The exponent leaves out the last step, although earlier errors grow through it. This is right on any
    grid, because the added errors are g_j = φ(τ_j) τ_j with φ non-decreasing. Let s = t_{N−1} − t_0, let τ be the last
    step and G_j ≤ e^{Ls} the growth of g_j before it. In the last step g_j grows by L τ g_j G_j more. If
    φ(τ_j) ≤ φ(τ), this is at most g_{N−1} L τ_j G_j, and these terms sum to at most g_{N−1} (e^{Ls} − 1). Otherwise
    τ_j > τ, and g_j G_j (1 + Lτ) ≤ g_j G_j (1 + Lτ_j) ≤ g_j e^{Ls}.
    """
    steps, lipschitz = errors.steps, errors.worst_lipschitz
    added = (errors.worst_field_error * steps + errors.worst_truncation * steps ** (errors.order + 1)).sum()
    with np.errstate(over="ignore"):
        grown = np.exp(lipschitz * steps[:-1].sum()) * added
        return float(grown + np.exp(lipschitz * steps.sum()) * start) if start else float(grown)


def uniform_bound(errors: StepErrors, start: float = 0.0) -> float:
    """Compute the paper's (5), for equal steps h: ((1 + Lh)^N − 1)/L (ε + C h^p) + (1 + Lh)^N |e_0|.

    Raises:
        ValueError: the steps are not equal.
    """
    steps, lipschitz = errors.steps, errors.worst_lipschitz
    if not errors.equal_steps:
        raise ValueError("the bound for uniform grids: these steps are not equal")
    h = steps.mean()
    added = errors.worst_field_error + errors.worst_truncation * h**errors.order
    log_growth = len(steps) * np.log1p(lipschitz * h)
    with np.errstate(over="ignore"):
        grown = _growth(log_growth, lipschitz, h * len(steps)) * added
        return float(grown + np.exp(log_growth) * start) if start else float(grown)


def max_step_bound(errors: StepErrors) -> float:
    """Compute (e^{LT} − 1)/L · (ε + C τ_max^p), for any grid and e_0 = 0."""
    steps, lipschitz = errors.steps, errors.worst_lipschitz
    added = errors.worst_field_error + errors.worst_truncation * steps.max() ** errors.order
    with np.errstate(over="ignore"):
        return float(_growth(lipschitz * steps.sum(), lipschitz, steps.sum()) * added)


def _growth(log_growth: float, lipschitz: float, time: float) -> float:
    """Compute (e^log_growth − 1)/L; its limit for L → 0 is the time."""
    if lipschitz * time < np.finfo(float).eps:  # then the limit is right to rounding, and dividing by L is not
        return float(time)
    return float(np.expm1(log_growth) / lipschitz)
