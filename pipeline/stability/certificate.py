"""Certificates: a claim about a system with the matrices that prove it, or with a counterexample.

A status is ``certified`` only if ``verify`` proved every inequality, ``refuted`` only with a counterexample, and
``unknown`` otherwise. The JSON holds everything that a proof needs; ``recheck.recheck`` proves it again from the start.
"""

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.stability.inequalities import flow_blocks, iss_blocks, step_blocks
from pipeline.stability.system import Array, System, nonlinearity, numbers
from pipeline.stability.verify import Enclosure, bounds_of_norm, is_positive_definite

CERTIFIED, REFUTED, UNKNOWN = "certified", "refuted", "unknown"

CLAIMS: dict[str, Set[str]] = {
    "contraction": {"rate"},
    "contraction_step": {"ratio", "step"},
    "iss": set(),
    "contraction_region": {"rate", "level", "input_radius"},
}
"""Names of the numbers that a claim must have, by inequality."""

_SHAPES: dict[str, dict[str, str]] = {
    "contraction": {"P": "nn", "gamma": "K"},
    "contraction_step": {"P": "nn", "gamma": "K"},
    "iss": {"P": "nn", "state": "nn", "inputs": "nn", "integral": "K", "products": "K", "sector": "K"},
    "contraction_region": {"P": "nn", "gamma": "K", "center": "n", "radii": "K"},
}
"""The witness's arrays and their axes, by inequality."""


@dataclass(frozen=True, eq=False)
class Counterexample:
    """Two states for which a claim is wrong.

    Attributes:
        kind: ``pair``: x and y separate faster than claimed, in the norm P; another norm may still prove the claim.
            ``equilibrium``: under the constant input g, x is at rest and solutions near it separate faster than claimed
            in every norm; y lies in such a direction.
            ``rest``: x ≠ 0 is at rest without input. ``dissipation``: under g, V grows at x faster than claimed.
            ``divergence``: under g, a simulation went from x to y and beyond.
        x, y, g: (n,) each.
        growth: the value found. allowed: the largest value that the claim allows.
    """

    kind: str
    x: Array
    y: Array
    g: Array
    growth: float
    allowed: float

    @property
    def refutes(self) -> str:
        """Scope of the refutation: ``this norm`` (only the norm P of the witness) or ``every norm``."""
        return "this norm" if self.kind == "pair" else "every norm"

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        written = {name: np.asarray(value).tolist() for name, value in vars(self).items()}
        return written | {"refutes": self.refutes}

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> "Counterexample":
        """Invert ``to_dict``; ``refutes`` is not read, because it follows from the kind."""
        arrays = {name: numbers(written[name]) for name in ("x", "y", "g")}
        return cls(written["kind"], **arrays, growth=written["growth"], allowed=written["allowed"])


@dataclass(frozen=True, eq=False)
class Certificate:
    """A claim about a system, and its status with the evidence.

    Attributes:
        inequality: a name in ``PROOFS``.
        claim: the numbers claimed, by the names in ``CLAIMS``.
        witness: the matrices that prove it, diagonals as vectors; empty if there are none.
        counterexample: given if refuted. If unknown, there may be one that refutes only the norm P of the witness.
        reason: given if unknown.
    """

    inequality: str
    status: str
    system: System
    claim: dict[str, float]
    witness: dict[str, Array] = field(default_factory=dict)
    counterexample: Counterexample | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON, which keeps every float64 exactly."""
        return {
            "inequality": self.inequality,
            "status": self.status,
            "claim": self.claim,
            "system": self.system.to_dict(),
            "slopes": {"lower": self.slopes[0].tolist(), "upper": self.slopes[1].tolist()},
            "witness": {name: value.tolist() for name, value in self.witness.items()},
            "counterexample": None if self.counterexample is None else self.counterexample.to_dict(),
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> "Certificate":
        """Invert ``to_dict``; the slopes are not read but derived again."""
        found = written["counterexample"]
        return cls(
            written["inequality"],
            written["status"],
            System.from_dict(written["system"]),
            dict(written["claim"]),
            {name: numbers(value) for name, value in written["witness"].items()},
            None if found is None else Counterexample.from_dict(found),
            written["reason"],
        )

    @property
    def slopes(self) -> tuple[Array, Array]:
        """The slope bounds (lower, upper) of the inequality, (K,) each; for a region they hold in the region only."""
        if self.inequality != "contraction_region" or "radii" not in self.witness:
            return self.system.slopes
        middle = Enclosure.exact(self.system.stacked[1]) @ self.witness["center"][:, None]
        reach = self.witness["radii"] + middle.rad[:, 0]
        # one more rounding in each sum
        reach = reach + 2.0**-50 * (np.abs(middle.mid[:, 0]) + reach)
        return self.system.slopes_on(middle.mid[:, 0] - reach, middle.mid[:, 0] + reach)


def issue(inequality: str, system: System, claim: dict[str, float], witness: dict[str, Array]) -> Certificate:
    """Issue a certificate: ``certified`` if this witness proves the claim, else ``unknown``.

    Raises:
        ValueError: the inequality is unknown, or the claim makes no sense.
    """
    if inequality not in PROOFS:
        raise ValueError(f"inequality: given {inequality!r}, allowed: {', '.join(PROOFS)}")
    refuse_senseless(claim, CLAIMS[inequality])
    candidate = Certificate(inequality, CERTIFIED, system, claim, witness)
    with np.errstate(over="ignore", invalid="ignore"):  # a result that is not finite proves nothing
        proved = _fits(candidate) and PROOFS[inequality](candidate)
    if proved:
        return candidate
    return Certificate(inequality, UNKNOWN, system, claim, reason="the witness does not prove the inequality")


def _proves_flow(certificate: Certificate) -> bool:
    A0, A, W, lower, upper, P, gamma = _operands(certificate)
    blocks = flow_blocks(A0, A, W, lower, upper, P, gamma, certificate.claim["rate"])
    return _weighs(certificate) and _negative(blocks)


def _proves_step(certificate: Certificate) -> bool:
    A0, A, W, lower, upper, P, gamma = _operands(certificate)
    ratio, step = certificate.claim["ratio"], certificate.claim["step"]
    if ratio > 1:
        raise ValueError(f"ratio: given {ratio}, allowed: in (0, 1]")
    M0, squared = A0 * step + np.eye(certificate.system.n), Enclosure.exact(ratio) * ratio
    blocks = step_blocks(M0, A * step, W, lower, upper, P, gamma, squared)
    return _weighs(certificate) and _negative(blocks)


def _proves_iss(certificate: Certificate) -> bool:
    system, witness = certificate.system, certificate.witness
    refuse_flat(system)
    A, W = map(Enclosure.exact, system.stacked)
    P, state, inputs = (Enclosure.exact(witness[name]) for name in ("P", "state", "inputs"))
    multipliers = ("integral", "products", "sector")
    integral, products, sector = (Enclosure.exact(np.diag(witness[name])) for name in multipliers)
    lower, upper = (Enclosure.exact(np.diag(slope)) for slope in system.slopes)
    A0 = Enclosure.exact(system.A0)
    return (
        all(_is_symmetric(witness[name]) for name in ("P", "state", "inputs"))
        and all((witness[name] >= 0).all() for name in multipliers)
        and is_positive_definite(P)
        and is_positive_definite(state)
        and _negative(iss_blocks(A0, A, W, lower, upper, P, integral, state, products, sector, inputs))
    )


def _proves_region(certificate: Certificate) -> bool:
    """Prove the flow's inequality with the slopes of the region.

    The radii enclose the ellipsoid |x − center|²_P ≤ level: radii_i² > level · w_i P⁻¹ w_iᵀ. This is proved by a
    positive definite [[P, level · w_iᵀ], [level · w_i, level · radii_i²]].
    """
    P, radii = Enclosure.exact(certificate.witness["P"]), certificate.witness["radii"]
    rate, level, inputs = (certificate.claim[name] for name in ("rate", "level", "input_radius"))
    if (radii < 0).any():
        return False
    if inputs > rate * math.sqrt(level) * (1 - 1e-15):
        raise ValueError(f"level, input_radius: given {level}, {inputs}, allowed: above 0, below rate · √level")
    for row, radius in zip(certificate.system.stacked[1], radii, strict=True):
        column = Enclosure.exact(row[:, None]) * level
        corner = Enclosure.exact(np.array([[radius]])) * radius * level
        if row.any() and not is_positive_definite(Enclosure.block([[P, column], [column.T, corner]])):
            return False
    return _proves_flow(certificate)


PROOFS: dict[str, Callable[[Certificate], bool]] = {
    "contraction": _proves_flow,
    "contraction_step": _proves_step,
    "iss": _proves_iss,
    "contraction_region": _proves_region,
}
"""The test whether a certificate's witness proves its claim, by inequality."""


def input_gain(certificate: Certificate) -> dict[str, float]:
    """Bound the long-run |x − y| per |g_x − g_y|, as ``P`` in the norm P and as ``euclidean`` in the Euclidean norm.

    The second is infinite if rounding hides the least eigenvalue of P.

    Raises:
        ValueError: the certificate is not of contraction or not certified, or the ratio is 1.
    """
    claim = certificate.claim
    if certificate.status != CERTIFIED or certificate.inequality not in {"contraction", "contraction_step"}:
        given = f"{certificate.status} {certificate.inequality}"
        raise ValueError(f"certificate: given {given}, allowed: certified contraction, contraction_step")
    if claim.get("ratio") == 1:
        raise ValueError("ratio: given 1, allowed: below 1")
    gain = 1 / claim["rate"] if "rate" in claim else claim["step"] / (1 - claim["ratio"])
    least, largest = bounds_of_norm(certificate.witness["P"])
    return {"P": gain, "euclidean": gain * math.sqrt(largest / least) if least > 0 else math.inf}


def refuse_senseless(claim: Mapping[str, Any], names: Set[str]) -> None:
    """Refuse a claim that does not have exactly these names, each with a positive finite number.

    Raises:
        ValueError: the claim is refused.
    """
    if claim.keys() != names:
        raise ValueError(f"claim: given {', '.join(claim)}, allowed: {', '.join(sorted(names))}")
    for name, value in claim.items():
        # these limits keep products of claims from overflow and from loss of digits
        if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 1e-100 <= value <= 1e100:
            raise ValueError(f"{name}: given {value!r}, allowed: a number from 1e-100 to 1e100")


def refuse_flat(system: System) -> None:
    """Refuse functions that are not strictly increasing: Theorem 3 does not hold for them.

    Raises:
        ValueError: a function is not strictly increasing.
    """
    flat = sorted({name for name in system.functions if not nonlinearity(name).strictly_increasing})
    if flat:
        raise ValueError(
            f"functions: given {', '.join(flat)}, allowed: strictly increasing ones, for input-to-state stability"
        )


def _fits(certificate: Certificate) -> bool:
    """Check that the witness has exactly the arrays of the inequality, with finite numbers and the right shapes."""
    K, n = certificate.system.stacked[1].shape
    axes = {"n": n, "K": K}
    shapes = {name: tuple(axes[axis] for axis in of) for name, of in _SHAPES[certificate.inequality].items()}
    witness = certificate.witness
    return witness.keys() == shapes.keys() and all(
        witness[name].shape == shape and np.isfinite(witness[name]).all() for name, shape in shapes.items()
    )


def _operands(certificate: Certificate) -> tuple[Enclosure, ...]:
    """Return A0, A, W, lower, upper, P and gamma, with diagonals as matrices (K, K)."""
    system, witness = certificate.system, certificate.witness
    lower, upper, gamma = (np.diag(value) for value in (*certificate.slopes, witness["gamma"]))
    return tuple(map(Enclosure.exact, (system.A0, *system.stacked, lower, upper, witness["P"], gamma)))


def _is_symmetric(matrix: Array) -> bool:
    return bool((matrix == matrix.T).all())


def _weighs(certificate: Certificate) -> bool:
    """Check that P is a norm and the multipliers are above 0."""
    P, gamma = certificate.witness["P"], certificate.witness["gamma"]
    return bool((gamma > 0).all()) and _is_symmetric(P) and is_positive_definite(P)


def _negative(blocks: list[list[Enclosure]]) -> bool:
    return is_positive_definite(-Enclosure.block(blocks))
