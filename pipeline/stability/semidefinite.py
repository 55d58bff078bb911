"""Search for the matrices of a linear matrix inequality. ``certificate.issue`` then proves that they fulfil it."""

import warnings
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.bmat import bmat
from cvxpy.atoms.affine.diag import diag
from cvxpy.atoms.affine.trace import trace

from pipeline.stability.inequalities import Blocks
from pipeline.stability.system import Array

CONDITION = 1e4
"""Largest ratio of eigenvalues of a norm P in the search."""

_LARGEST = 1e6
"""Upper bound of the multipliers in the search; P ⪰ I."""


Builder = Callable[[Any, Any, Any], Blocks]
"""(P (n, n), Γ (K, K), a bound as a number) → blocks of the matrix that has to be negative definite."""


class NormSearch:
    """Search for the P and Γ that make the matrix most negative; compiled once and solved for many bounds.

    Args:
        n, multipliers: n and K.
    """

    def __init__(self, blocks: Builder, n: int, multipliers: int) -> None:
        self._P = cp.Variable((n, n), symmetric=True)
        self._gamma, self._bound, slack = cp.Variable(multipliers), cp.Parameter(), cp.Variable()
        limits = [
            bmat(blocks(self._P, diag(self._gamma), self._bound)) << -slack * np.eye(n + multipliers),
            self._P >> np.eye(n),
            self._P << CONDITION * np.eye(n),
            self._gamma >= 0,
            self._gamma <= _LARGEST,
            slack <= 1,
        ]
        self._problem = cp.Problem(cp.Maximize(slack), limits)

    def solve(self, bound: float) -> dict[str, Array] | None:
        """Find ``P`` (n, n), symmetric, and ``gamma`` (K,); None if no solver succeeds."""
        self._bound.value = bound
        return _found(self._problem, self._P, self._gamma)


def largest_ellipsoid(blocks: Builder, bound: float, W: Array) -> dict[str, Array] | None:
    """Find the P of least trace, and Γ, so that xᵀPx ≤ 1 implies |w_i x| ≤ 1 for the rows w_i of ``W`` (K, n)."""
    K, n = W.shape
    scale = float(np.square(W).sum(1).max())  # so that the solver sees a P near 1
    P, gamma = cp.Variable((n, n), symmetric=True), cp.Variable(K)
    limits = [bmat(blocks(P, diag(gamma), bound)) << -1e-6 * np.eye(n + K), gamma >= 0, gamma <= _LARGEST]
    limits += [P >> 1e-6 * np.eye(n)]
    limits += [P >> w[:, None] @ w[None, :] / scale for w in W]
    found = _found(cp.Problem(cp.Minimize(trace(P)), limits), P, gamma)
    return None if found is None else {name: scale * value for name, value in found.items()}


def multipliers_for(blocks: Builder, bound: float, P: Array, count: int) -> Array | None:
    """Find the Γ (K,) that make the matrix most negative with this P (n, n)."""
    scale = float(np.abs(P).max())
    gamma, slack = cp.Variable(count), cp.Variable()
    matrix = bmat(blocks(P / scale, diag(gamma), bound))
    limits = [matrix << -slack * np.eye(len(P) + count), gamma >= 0, gamma <= _LARGEST, slack <= 1]
    if not solved(cp.Problem(cp.Maximize(slack), limits)):
        return None
    return scale * np.maximum(np.asarray(gamma.value), 0)


def solved(problem: cp.Problem) -> bool:
    """Solve ``problem`` by Clarabel, or by SCS if that fails; return whether it has a solution."""
    for solver in (cp.CLARABEL, cp.SCS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about inaccurate solutions; the proof decides later
                problem.solve(solver=solver)
        except cp.SolverError:
            continue
        return problem.status in {cp.OPTIMAL, cp.OPTIMAL_INACCURATE}
    return False


def _found(problem: cp.Problem, P: cp.Variable, gamma: cp.Variable) -> dict[str, Array] | None:
    if not solved(problem):
        return None
    value = np.asarray(P.value)
    return {"P": (value + value.T) / 2, "gamma": np.maximum(np.asarray(gamma.value), 0)}
