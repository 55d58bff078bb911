"""Contraction of system (7) and of its Euler map: certificates with given matrices, or with matrices searched for.

The search grows with the size of the system: a second at n = K = 16, up to a minute at 32, for each bound tried. A
chunk of H action steps that share one system of n states, applied to each step by itself, is (I_H ⊗ A0, I_H ⊗ A_j, I_H
⊗ W_j), and I_H ⊗ P, I_H ⊗ Γ prove of the whole what P, Γ prove of the one: certify the block. Systems contracting by
construction need no search at any size, since their P and Γ are given.
"""

from collections.abc import Callable

import numpy as np

from pipeline.stability.certificate import CERTIFIED, REFUTED, UNKNOWN, Certificate, issue
from pipeline.stability.falsify import expanding_pair
from pipeline.stability.inequalities import flow_blocks, step_blocks
from pipeline.stability.semidefinite import NormSearch
from pipeline.stability.system import Array, System
from pipeline.stability.verify import bounds_of_norm

Claim = Callable[[float], dict[str, float]]


def certify_flow(system: System, rate: float, P: Array | None = None, gamma: Array | None = None) -> Certificate:
    """Whether |δ(t)|_P ≤ e^{−rate·t} |δ(0)|_P of any two solutions with one input.

    Args:
        P, gamma: the norm (n, n) and the multipliers (K,), all in one vector; searched for if absent.

    Returns:
        ``refuted`` with a pair in P where P is given, else with an equilibrium that refutes it in every norm.

    Raises:
        ValueError: the rate is not above 0, or the matrices do not fit.
    """
    if not rate > 0:
        raise ValueError(f"rate: given {rate}, allowed: above 0")
    witness = _given(system, P, gamma) or flow_search(system).solve(rate)
    return _settled("contraction", system, {"rate": rate}, witness, P)


def certify_step(
    system: System, ratio: float, step: float, P: Array | None = None, gamma: Array | None = None
) -> Certificate:
    """Whether |δ⁺|_P ≤ ratio · |δ|_P of any two states after an Euler step of that length; as ``certify_flow``.

    Raises:
        ValueError: the ratio is not in (0, 1], or the step not above 0, or the matrices do not fit.
    """
    if not (0 < ratio <= 1 and step > 0):
        raise ValueError(f"ratio, step: given {ratio}, {step}, allowed: in (0, 1], above 0")
    witness = _given(system, P, gamma) or step_search(system, step).solve(ratio**2)
    return _settled("contraction_step", system, {"ratio": ratio, "step": step}, witness, P)


def largest_rate(system: System, tolerance: float = 1e-2) -> Certificate:
    """The certificate of ``certify_flow`` for the largest rate that is proved, within a relative tolerance."""
    search = flow_search(system)
    top = float(-np.linalg.eigvals(_sampled_jacobians(system)).real.max())
    if top <= 0:
        return certify_flow(system, 1e-6)
    best = _bisected(system, "contraction", lambda rate: {"rate": rate}, search.solve, top * 1e-3, top, tolerance * top)
    return best or certify_flow(system, top * 1e-3)


def smallest_ratio(system: System, step: float, tolerance: float = 1e-3) -> Certificate:
    """The certificate of ``certify_step`` for the smallest ratio that is proved, within a tolerance."""
    search = step_search(system, step)
    bottom = float(np.abs(np.linalg.eigvals(np.eye(system.n) + step * _sampled_jacobians(system))).max())
    best = None
    if bottom < 1:
        best = _bisected(
            system,
            "contraction_step",
            lambda ratio: {"ratio": ratio, "step": step},
            lambda ratio: search.solve(ratio**2),
            1.0,
            bottom,
            tolerance,
        )
    return best or certify_step(system, 1.0, step)


def input_gain(certificate: Certificate) -> dict[str, float]:
    """Bounds of |x − y| in the long run per |g_x − g_y|, in the norm P and, as ``euclidean``, in the Euclidean one.

    Raises:
        ValueError: the certificate is not of contraction, or not certified, or the ratio is 1.
    """
    claim = certificate.claim
    if certificate.status != CERTIFIED or certificate.inequality not in {"contraction", "contraction_step"}:
        given = f"{certificate.status} {certificate.inequality}"
        raise ValueError(f"certificate: given {given}, allowed: certified contraction, contraction_step")
    if claim.get("ratio") == 1:
        raise ValueError("ratio: given 1, allowed: below 1")
    gain = 1 / claim["rate"] if "rate" in claim else claim["step"] / (1 - claim["ratio"])
    least, largest = bounds_of_norm(certificate.witness["P"])
    return {"P": gain, "euclidean": gain * float(np.sqrt(largest / least))}


def flow_search(system: System) -> NormSearch:
    """For a rate."""
    A, W = system.stacked
    lower, upper = map(np.diag, system.slopes)
    return NormSearch(
        lambda P, gamma, rate: flow_blocks(system.A0, A, W, lower, upper, P, gamma, rate), system.n, len(W)
    )


def step_search(system: System, step: float) -> NormSearch:
    """For a squared ratio."""
    A, W = system.stacked
    lower, upper = map(np.diag, system.slopes)
    M0 = np.eye(system.n) + step * system.A0
    return NormSearch(
        lambda P, gamma, squared: step_blocks(M0, step * A, W, lower, upper, P, gamma, squared), system.n, len(W)
    )


def _given(system: System, P: Array | None, gamma: Array | None) -> dict[str, Array] | None:
    if P is None and gamma is None:
        return None
    if P is None or gamma is None:
        raise ValueError("P, gamma: given one of them, allowed: both or neither")
    shapes = (system.n, system.n), (len(system.stacked[1]),)
    if (P.shape, gamma.shape) != shapes or (P != P.T).any():
        raise ValueError(f"P, gamma: given {P.shape}, {gamma.shape}, allowed: {shapes[0]}, symmetric, {shapes[1]}")
    return {"P": P, "gamma": gamma}


def _settled(
    inequality: str, system: System, claim: dict[str, float], witness: dict[str, Array] | None, P: Array | None
) -> Certificate:
    """Proved by the witness, or refuted, or unknown."""
    if witness is not None:
        proved = issue(inequality, system, claim, witness)
        if proved.status == CERTIFIED:
            return proved
    allowed = claim.get("ratio", -claim.get("rate", 0.0))
    for norm in (None,) if P is None else (P, None):
        found = expanding_pair(system, allowed, P=norm, step=claim.get("step"))
        if found is not None:
            witness = {} if norm is None else {"P": norm}
            return Certificate(inequality, REFUTED, system, claim, witness, found)
    reason = "no matrices were found" if P is None else "the matrices given do not prove the inequality"
    return Certificate(inequality, UNKNOWN, system, claim, reason=reason)


def _bisected(
    system: System,
    inequality: str,
    claim: Claim,
    solve: Callable[[float], dict[str, Array] | None],
    easy: float,
    hard: float,
    tolerance: float,
) -> Certificate | None:
    """The certificate nearest to ``hard`` that is proved, between the two; None if ``easy`` is not."""

    def proved(value: float) -> Certificate | None:
        witness = solve(value)
        certificate = None if witness is None else issue(inequality, system, claim(value), witness)
        return certificate if certificate is not None and certificate.status == CERTIFIED else None

    best = proved(easy)
    while best is not None and abs(hard - easy) > tolerance:
        middle = (easy + hard) / 2
        found = proved(middle)
        if found is None:
            hard = middle
        else:
            best, easy = found, middle
    return best


def _sampled_jacobians(system: System) -> Array:
    """At some states, (B, n, n): no norm contracts faster than they do."""
    generator = np.random.default_rng(0)
    return system.jacobian(generator.standard_normal((64, system.n)) * np.exp(generator.uniform(-5, 3, (64, 1))))
