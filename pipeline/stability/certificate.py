"""Certificates: what is claimed of a system, the matrices that prove it, and proofs and refutations that can be redone.

A status is ``certified`` only where ``verify`` proved every inequality, ``refuted`` only with a counterexample, and
``unknown`` otherwise. To JSON goes all that a proof needs; ``recheck.recheck`` believes none of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.stability.inequalities import flow_blocks, iss_blocks, step_blocks
from pipeline.stability.system import Array, System, nonlinearity
from pipeline.stability.verify import Enclosure, is_positive_definite

CERTIFIED, REFUTED, UNKNOWN = "certified", "refuted", "unknown"


@dataclass(frozen=True, eq=False)
class Counterexample:
    """Two states that a claim is wrong about.

    Attributes:
        kind: ``pair``: x and y separate faster than claimed, in the norm P.
            ``equilibrium``: under the constant input g, x is at rest and solutions near it separate faster than claimed
            in every norm; y lies in such a direction.
            ``rest``: x ≠ 0 is at rest without input. ``dissipation``: under g, V grows at x faster than claimed.
            ``divergence``: under g, x was led to y and onwards, in simulation.
        x, y, g: (n,) each.
        growth: what was found, allowed: what the claim would have it at most.
    """

    kind: str
    x: Array
    y: Array
    g: Array
    growth: float
    allowed: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> "Counterexample":
        """The inverse of ``to_dict``."""
        arrays = {name: np.array(written[name], dtype=np.float64) for name in ("x", "y", "g")}
        return cls(written["kind"], **arrays, growth=written["growth"], allowed=written["allowed"])


@dataclass(frozen=True, eq=False)
class Certificate:
    """A claim about a system and what became of it.

    Attributes:
        inequality: a name in ``PROOFS``.
        claim: the numbers claimed, such as ``rate``.
        witness: the matrices that prove it, diagonals as vectors; empty where there are none.
        counterexample: where refuted.
        reason: where unknown.
    """

    inequality: str
    status: str
    system: System
    claim: dict[str, float]
    witness: dict[str, Array] = field(default_factory=dict)
    counterexample: Counterexample | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which keeps every float64 exactly."""
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
        """The inverse of ``to_dict``; the slopes are not read but derived again."""
        found = written["counterexample"]
        return cls(
            written["inequality"],
            written["status"],
            System.from_dict(written["system"]),
            dict(written["claim"]),
            {name: np.array(value, dtype=np.float64) for name, value in written["witness"].items()},
            None if found is None else Counterexample.from_dict(found),
            written["reason"],
        )

    @property
    def slopes(self) -> tuple[Array, Array]:
        """The bounds (lower, upper) that the inequality uses, (K,) each: of the region for a region, else global."""
        if "radii" not in self.witness:
            return self.system.slopes
        middle = Enclosure.exact(self.system.stacked[1]) @ self.witness["center"][:, None]
        reach = self.witness["radii"] + middle.rad[:, 0]
        # one more rounding in each sum
        reach = reach + 2.0**-50 * (np.abs(middle.mid[:, 0]) + reach)
        return self.system.slopes_on(middle.mid[:, 0] - reach, middle.mid[:, 0] + reach)


def issue(inequality: str, system: System, claim: dict[str, float], witness: dict[str, Array]) -> Certificate:
    """``certified`` if the proof goes through with this witness, else ``unknown``.

    Raises:
        ValueError: no such inequality, or a claim that makes no sense.
    """
    if inequality not in PROOFS:
        raise ValueError(f"inequality: given {inequality!r}, allowed: {', '.join(PROOFS)}")
    candidate = Certificate(inequality, CERTIFIED, system, claim, witness)
    if PROOFS[inequality](candidate):
        return candidate
    return Certificate(inequality, UNKNOWN, system, claim, reason="the witness does not prove the inequality")


def _proves_flow(certificate: Certificate) -> bool:
    A0, A, W, lower, upper, P, gamma = _operands(certificate)
    rate = certificate.claim["rate"]
    if not rate > 0:
        raise ValueError(f"rate: given {rate}, allowed: above 0")
    return _is_norm(certificate.witness["P"]) and _negative(flow_blocks(A0, A, W, lower, upper, P, gamma, rate))


def _proves_step(certificate: Certificate) -> bool:
    A0, A, W, lower, upper, P, gamma = _operands(certificate)
    ratio, step = certificate.claim["ratio"], certificate.claim["step"]
    if not (0 < ratio <= 1 and step > 0):
        raise ValueError(f"ratio, step: given {ratio}, {step}, allowed: in (0, 1], above 0")
    M0, squared = A0 * step + np.eye(certificate.system.n), Enclosure.exact(ratio) * ratio
    blocks = step_blocks(M0, A * step, W, lower, upper, P, gamma, squared)
    return _is_norm(certificate.witness["P"]) and _negative(blocks)


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
    """The flow's inequality with the slopes of the region, whose radii enclose the ellipsoid |x − center|²_P ≤ level:
    radii_i² > level · w_i P⁻¹ w_iᵀ, by a positive definite [[P, w_iᵀ], [w_i, radii_i²/level]].
    """
    P, radii, level = (
        Enclosure.exact(certificate.witness["P"]),
        certificate.witness["radii"],
        certificate.claim["level"],
    )
    rate, inputs = certificate.claim["rate"], certificate.claim["input_radius"]
    if not (level > 0 and 0 < inputs <= rate * math.sqrt(level) * (1 - 1e-15)):
        raise ValueError(f"level, input_radius: given {level}, {inputs}, allowed: above 0, below rate · √level")
    for row, radius in zip(certificate.system.stacked[1], radii, strict=True):
        column = Enclosure.exact(row[:, None])
        corner = Enclosure.exact(np.array([[radius**2 / level * (1 - 1e-12)]]))
        if row.any() and not is_positive_definite(Enclosure.block([[P, column], [column.T, corner]])):
            return False
    return _proves_flow(certificate)


PROOFS: dict[str, Callable[[Certificate], bool]] = {
    "contraction": _proves_flow,
    "contraction_step": _proves_step,
    "iss": _proves_iss,
    "contraction_region": _proves_region,
}
"""By name of the inequality: whether the certificate's witness proves its claim."""


def refuse_flat(system: System) -> None:
    """Refuse functions that are not strictly increasing, of which Theorem 3 is not true.

    Raises:
        ValueError: there is one.
    """
    flat = sorted({name for name in system.functions if not nonlinearity(name).strictly_increasing})
    if flat:
        raise ValueError(
            f"functions: given {', '.join(flat)}, allowed: strictly increasing ones, for input-to-state stability"
        )


def _operands(certificate: Certificate) -> tuple[Enclosure, ...]:
    """A0, A, W, lower, upper, P and gamma, diagonals as matrices (K, K)."""
    A, W = certificate.system.stacked
    diagonals = (np.diag(value) for value in (*certificate.slopes, certificate.witness["gamma"]))
    lower, upper, gamma = map(Enclosure.exact, diagonals)
    return (
        *map(Enclosure.exact, (certificate.system.A0, A, W)),
        lower,
        upper,
        Enclosure.exact(certificate.witness["P"]),
        gamma,
    )


def _is_symmetric(matrix: Array) -> bool:
    return bool((matrix == matrix.T).all())


def _is_norm(P: Array) -> bool:
    return _is_symmetric(P) and is_positive_definite(P)


def _negative(blocks: list[list[Enclosure]]) -> bool:
    return is_positive_definite(-Enclosure.block(blocks))
