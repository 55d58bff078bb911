"""Prove that a symmetric matrix is positive definite, with every rounding error bounded.

``Enclosure`` computes with a midpoint and a radius for each entry; the exact value lies within. ``least_eigenvalue``
then bounds the least eigenvalue from below. The proof assumes IEEE 754 binary64, rounding to nearest, and matrix
products that sum each entry's terms in any order, fused or not (Higham 2002, section 3.1). This excludes Strassen-like
libraries. The Cholesky factor is only a guess: it is multiplied out again, so its own error does not matter (after Rump
2006, "Verification of positive definiteness").
"""

from dataclasses import dataclass
from typing import Union

import numpy as np

from pipeline.stability.system import Array

UNIT = 2.0**-53
"""Unit roundoff u."""

_TINY = 1e-290
"""Upper bound of the loss by underflow in any sum of up to 10^6 terms."""

Operand = Union[Array, float, "Enclosure"]


@dataclass(frozen=True, eq=False)
class Enclosure:
    """All matrices X with |X − mid| ≤ rad, entry by entry. An array or a number counts as known exactly."""

    mid: Array
    rad: Array

    __array_ufunc__ = None  # numpy leaves array @ enclosure to __rmatmul__

    @classmethod
    def exact(cls, value: Operand) -> "Enclosure":
        """Enclose ``value`` with radius 0."""
        if isinstance(value, Enclosure):
            return value
        mid = np.asarray(value, dtype=np.float64)
        return cls(mid, np.zeros_like(mid))

    @classmethod
    def block(cls, rows: "list[list[Enclosure]]") -> "Enclosure":
        """Join blocks, as ``np.block`` does."""
        return cls(np.block([[b.mid for b in row] for row in rows]), np.block([[b.rad for b in row] for row in rows]))

    @property
    def T(self) -> "Enclosure":  # noqa: N802
        """The transposed matrix."""
        return Enclosure(self.mid.T, self.rad.T)

    def __add__(self, other: Operand) -> "Enclosure":
        return self._combined(Enclosure.exact(other), 1)

    def __sub__(self, other: Operand) -> "Enclosure":
        return self._combined(Enclosure.exact(other), -1)

    def __mul__(self, other: Operand) -> "Enclosure":
        """Multiply entry by entry, or by a number."""
        b = Enclosure.exact(other)
        mid = self.mid * b.mid
        return Enclosure(
            mid, _up(UNIT * np.abs(mid) + self.rad * (np.abs(b.mid) + b.rad) + np.abs(self.mid) * b.rad, 8)
        )

    def __matmul__(self, other: Operand) -> "Enclosure":
        b = Enclosure.exact(other)
        terms = self.mid.shape[1]
        rounding = (terms + 2) * UNIT * (1 + 1e-9) * (np.abs(self.mid) @ np.abs(b.mid))
        spread = np.zeros_like(rounding)
        if self.rad.any():
            spread = self.rad @ (np.abs(b.mid) + b.rad)
        if b.rad.any():
            spread = spread + np.abs(self.mid) @ b.rad
        return Enclosure(self.mid @ b.mid, _up(rounding + spread, terms + 8))

    def __radd__(self, other: Operand) -> "Enclosure":
        return self + other

    def __rsub__(self, other: Operand) -> "Enclosure":
        return Enclosure.exact(other) - self

    def __rmul__(self, other: Operand) -> "Enclosure":
        return self * other

    def __rmatmul__(self, other: Operand) -> "Enclosure":
        return Enclosure.exact(other) @ self

    def __neg__(self) -> "Enclosure":
        return Enclosure(-self.mid, self.rad)

    def _combined(self, other: "Enclosure", sign: int) -> "Enclosure":
        mid = self.mid + sign * other.mid
        return Enclosure(mid, _up(UNIT * np.abs(mid) + self.rad + other.rad, 4))


def is_positive_definite(matrix: Operand) -> bool:
    """Try to prove it for all symmetric matrices in the enclosure (m, m). False means not proved."""
    enclosure = Enclosure.exact(matrix)
    diagonal = np.diagonal(enclosure.mid)
    if not np.isfinite(enclosure.mid).all() or not np.isfinite(enclosure.rad).all() or not (diagonal > 0).all():
        return False
    # scale exactly to a diagonal of about 1; else the rounding of large multipliers would hide small ones
    scale = np.exp2(np.clip(-np.round(np.log2(diagonal) / 2), -400, 400))
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = Enclosure(enclosure.mid * scale[:, None] * scale, _up(enclosure.rad * scale[:, None] * scale, 4))
    return least_eigenvalue(scaled) > 0


def least_eigenvalue(matrix: Operand) -> float:
    """Prove a lower bound of the least eigenvalue of every symmetric matrix in the enclosure (m, m).

    The result is 0 if no bound above 0 is found. For any L,
    λ_min(X) ≥ s + λ_min(LLᵀ) − ‖X − sI − LLᵀ‖_∞ ≥ s − ‖X − sI − LLᵀ‖_∞.
    """
    enclosure = Enclosure.exact(matrix)
    symmetric = (enclosure + enclosure.T) * 0.5
    if not (np.isfinite(symmetric.mid).all() and np.isfinite(symmetric.rad).all()):
        return 0.0
    estimate = float(np.linalg.eigvalsh(symmetric.mid)[0])
    for fraction in (0.9, 0.5):
        shift = fraction * estimate
        if shift <= 0:
            return 0.0
        try:
            factor = np.asarray(
                np.linalg.cholesky(symmetric.mid - shift * np.eye(len(symmetric.mid))), dtype=np.float64
            )
        except np.linalg.LinAlgError:
            continue
        residual = symmetric - shift * np.eye(len(factor)) - Enclosure.exact(factor) @ factor.T
        error = float(_up(np.abs(residual.mid) + residual.rad, 4).sum(1).max()) * (1 + 4 * len(factor) * UNIT)
        if error < shift:
            return float(np.nextafter(shift - error, 0))
    return 0.0


def bounds_of_norm(P: Array) -> tuple[float, float]:
    """Prove (a, b) with aI ⪯ P ⪯ bI for symmetric P (n, n); a = 0 if P was not proved positive definite."""
    largest = float(np.abs(P).sum(1).max()) * (1 + 4 * len(P) * UNIT)
    for above in (1e-9, 1e-6, 1e-3):
        candidate = float(np.linalg.eigvalsh(P)[-1]) * (1 + above)
        if is_positive_definite(Enclosure.exact(candidate * np.eye(len(P))) - P):
            largest = min(largest, candidate)
            break
    return least_eigenvalue(P), largest


def _up(radius: Array, operations: int) -> Array:
    """Raise ``radius`` above its exact value; it was computed from non-negative terms in ``operations`` roundings."""
    raised: Array = radius * (1 + 4 * operations * UNIT) + _TINY
    return raised
