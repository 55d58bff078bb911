"""System (7) of arXiv 2510.02081 with its numbers: x' = A0 x + Σ_j A_j f_j(W_j x) + g, f_j applied componentwise.

The proofs use only the properties of f_j that ``Nonlinearity`` states. These come from analysis, not from sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAK = 0.01
"""Slope of ``leaky_relu`` left of zero."""

_LIBRARY_ERROR = 1e-14
"""Safe bound of the absolute and relative error of numpy's tanh and arctan, and of derivatives computed from them."""


@dataclass(frozen=True)
class Nonlinearity:
    """f with f(0) = 0 and slopes in [lower, upper], that is lower ≤ (f(a) − f(b))/(a − b) ≤ upper for a ≠ b.

    Attributes:
        function, derivative: on arrays of any shape; at a kink it is the derivative from the right.
        strictly_increasing: if true, s f(s) > 0 for s ≠ 0, which input-to-state stability needs.
        unbounded: |f(s)| → ∞ for s → ∞ and for s → −∞.
        unbounded_integral: the same for ∫_0^s f.
        peaked: whether the derivative falls with |s|; otherwise it must not fall with s.
    """

    name: str
    function: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    lower: float
    upper: float
    strictly_increasing: bool
    unbounded: bool
    unbounded_integral: bool
    peaked: bool

    def slopes_on(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Bound all slopes between points of [low, high] by (lower, upper), each shaped as ``low``.

        Raises:
            ValueError: low ≤ high does not hold everywhere.
        """
        if not (low <= high).all():
            raise ValueError("low, high: given low above high, or not a number, allowed: low ≤ high")
        nearest, farthest = np.clip(0.0, low, high), np.where(-low > high, low, high)
        least, most = (farthest, nearest) if self.peaked else (np.nextafter(low, -np.inf), high)
        under, over = self.derivative(least), self.derivative(most)
        if self.peaked:
            under = under * (1 - _LIBRARY_ERROR) - _LIBRARY_ERROR
            over = over * (1 + _LIBRARY_ERROR) + _LIBRARY_ERROR
        return np.maximum(under, self.lower), np.minimum(over, self.upper)


NONLINEARITIES: dict[str, Nonlinearity] = {
    f.name: f
    for f in (
        Nonlinearity("tanh", np.tanh, lambda s: 1 - np.tanh(s) ** 2, 0.0, 1.0, True, False, True, True),
        Nonlinearity("arctan", np.arctan, lambda s: 1 / (1 + s**2), 0.0, 1.0, True, False, True, True),
        Nonlinearity(
            "softsign",
            lambda s: s / (1 + np.abs(s)),
            lambda s: (1 + np.abs(s)) ** -2.0,
            0.0,
            1.0,
            True,
            False,
            True,
            True,
        ),
        Nonlinearity(
            "relu",
            lambda s: np.maximum(s, 0),
            lambda s: np.where(s < 0, 0.0, 1.0),
            0.0,
            1.0,
            False,
            False,
            False,
            False,
        ),
        Nonlinearity(
            "leaky_relu",
            lambda s: np.where(s < 0, LEAK * s, s),
            lambda s: np.where(s < 0, LEAK, 1.0),
            LEAK,
            1.0,
            True,
            True,
            True,
            False,
        ),
    )
}


def nonlinearity(name: str) -> Nonlinearity:
    """Return the nonlinearity of that name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in NONLINEARITIES:
        raise ValueError(f"function: given {name!r}, allowed: {', '.join(NONLINEARITIES)}")
    return NONLINEARITIES[name]


@dataclass(frozen=True)
class System:
    """x' = A0 x + Σ_j A_j f_j(W_j x) + g.

    Attributes:
        A0: (n, n). A: of (n, k_j). W: of (k_j, n). functions: names in ``NONLINEARITIES``.

    Raises:
        ValueError: shapes do not fit, a number is not finite, or a function is unknown.
    """

    A0: Array
    A: tuple[Array, ...]
    W: tuple[Array, ...]
    functions: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, value in (
            ("A0", _matrix(self.A0)),
            ("A", tuple(map(_matrix, self.A))),
            ("W", tuple(map(_matrix, self.W))),
            ("functions", tuple(self.functions)),
        ):
            object.__setattr__(self, name, value)
        n = len(self.A0)
        if self.A0.shape != (n, n) or n == 0:
            raise ValueError(f"A0: given shape {self.A0.shape}, allowed: square, not empty")
        if not 0 < len(self.A) == len(self.W) == len(self.functions):
            given = f"{len(self.A)}, {len(self.W)}, {len(self.functions)}"
            raise ValueError(f"A, W, functions: given {given}, allowed: as many of each, at least one")
        for j, (a, w, name) in enumerate(zip(self.A, self.W, self.functions, strict=True)):
            nonlinearity(name)
            if a.shape != w.shape[::-1] or len(a) != n:
                raise ValueError(f"A[{j}], W[{j}]: given {a.shape}, {w.shape}, allowed: ({n}, k) and (k, {n})")

    @property
    def n(self) -> int:
        """Dimension of the state."""
        return len(self.A0)

    @property
    def stacked(self) -> tuple[Array, Array]:
        """(A_1, A_2, …), (n, K), and the W_j above one another, (K, n)."""
        return np.hstack(self.A), np.vstack(self.W)

    @property
    def slopes(self) -> tuple[Array, Array]:
        """Bounds (lower, upper) of the slopes everywhere, (K,) each."""
        return self._per_row(lambda f: f.lower), self._per_row(lambda f: f.upper)

    def slopes_on(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Bound the slopes by (lower, upper), (K,) each, while all W_j x stay in [low, high], (K,) each."""
        found = [
            nonlinearity(name).slopes_on(low[rows], high[rows])
            for name, rows in zip(self.functions, self._rows(), strict=True)
        ]
        return (
            np.concatenate([lower for lower, _ in found]),
            np.concatenate([upper for _, upper in found]),
        )

    def field(self, x: Array, g: Array | float = 0.0) -> Array:
        """Compute x' (…, n) at ``x`` (…, n) for the input ``g``, (…, n) or a number."""
        moved = x @ self.A0.T + g
        for a, w, name in zip(self.A, self.W, self.functions, strict=True):
            moved = moved + nonlinearity(name).function(x @ w.T) @ a.T
        return moved

    def jacobian(self, x: Array) -> Array:
        """Compute ∂x'/∂x (…, n, n) at ``x`` (…, n)."""
        jacobian = np.broadcast_to(self.A0, (*x.shape[:-1], self.n, self.n))
        for a, w, name in zip(self.A, self.W, self.functions, strict=True):
            jacobian = jacobian + (a * nonlinearity(name).derivative(x @ w.T)[..., None, :]) @ w
        return np.array(jacobian)

    def euler_step(self, x: Array, g: Array | float, h: float) -> Array:
        """Compute x + h x', (…, n)."""
        return x + h * self.field(x, g)

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON, which keeps every float64 exactly."""
        return {
            "A0": self.A0.tolist(),
            "A": [a.tolist() for a in self.A],
            "W": [w.tolist() for w in self.W],
            "functions": list(self.functions),
        }

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> "System":
        """Invert ``to_dict``."""
        return cls(written["A0"], tuple(written["A"]), tuple(written["W"]), tuple(written["functions"]))

    def _rows(self) -> list[slice]:
        ends = np.cumsum([len(w) for w in self.W])
        return [slice(int(end) - len(w), int(end)) for end, w in zip(ends, self.W, strict=True)]

    def _per_row(self, value: Callable[[Nonlinearity], float]) -> Array:
        parts = [np.full(len(w), value(nonlinearity(f))) for w, f in zip(self.W, self.functions, strict=True)]
        return np.concatenate(parts)


def numbers(given: object) -> Array:
    """Convert numbers to float64; refuse strings and truth values.

    Raises:
        ValueError: ``given`` holds something other than numbers.
    """
    found = np.array(given)
    if found.size and found.dtype.kind not in "fiu":
        raise ValueError(f"numbers: given {found.dtype}, allowed: floating point and integers")
    return found.astype(np.float64)


def _matrix(given: object) -> Array:
    matrix = numbers(given)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError(f"matrix: given shape {matrix.shape}, allowed: two dimensions, finite numbers")
    return matrix
