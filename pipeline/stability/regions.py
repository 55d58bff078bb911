"""Certify regions in which system (7) contracts and stays for bounded inputs: Theorem 4 of arXiv 2510.02081.

Near some equilibria saturating functions have small slopes, so a system with several equilibria can contract in several
regions. Each is an ellipsoid |x − center|²_P ≤ level.
"""

import numpy as np

from pipeline.stability.certificate import CERTIFIED, REFUTED, UNKNOWN, Certificate, Counterexample, issue
from pipeline.stability.falsify import recheck_counterexample
from pipeline.stability.inequalities import flow_blocks
from pipeline.stability.semidefinite import Builder, largest_ellipsoid, multipliers_for
from pipeline.stability.system import Array, System

_WIDER = 1 + 1e-7
"""Factor by which radii are rounded up before the proof."""


def equilibria(system: System, g: Array, *, seed: int = 0, starts: int = 200, steps: int = 50) -> Array:
    """Find states with x' = 0 under the constant input ``g`` (n,) by Newton's method from many starts.

    Returns:
        The states (E, n), from the smallest norm. There may be others.
    """
    generator = np.random.default_rng(seed)
    reach = np.exp(generator.uniform(np.log(1e-2), np.log(1e2), (starts, 1)))
    states = reach * generator.standard_normal((starts, system.n))
    for _ in range(steps):
        jacobians = system.jacobian(states) + 1e-12 * np.eye(system.n)
        moved = states - np.linalg.solve(jacobians, system.field(states, g)[..., None])[..., 0]
        states = np.where(np.isfinite(moved) & (np.abs(moved) < 1e6), moved, states)
    scale = np.linalg.norm(g) + np.linalg.norm(system.A0) * np.linalg.norm(states, axis=1) + 1e-9
    found: list[Array] = []
    for x in sorted(states[np.linalg.norm(system.field(states, g), axis=1) < 1e-10 * scale], key=np.linalg.norm):
        if all(np.linalg.norm(x - other) > 1e-5 * (1 + np.linalg.norm(x)) for other in found):
            found.append(x)
    return np.array(found).reshape(-1, system.n)


def certify_region(system: System, center: Array, rate: float, *, bisections: int = 16) -> Certificate:
    """Certify an ellipsoid around ``center`` in which the flow contracts at ``rate``, about the largest provable one.

    ``center`` (n,) is an exact equilibrium for the input g* = −(x' without input), and nearly one for the input that it
    was computed for. For inputs with |g − g*|_P ≤ input_radius = rate · √level, constant or not, no solution leaves the
    ellipsoid, and any two solutions in it approach each other at ``rate``.

    Returns:
        ``refuted`` if solutions near ``center`` separate faster than claimed.

    Raises:
        ValueError: the rate is not above 0.
    """
    if not rate > 0:
        raise ValueError(f"rate: given {rate}, allowed: above 0")
    values, vectors = np.linalg.eig(system.jacobian(center))
    leading = int(np.argmax(values.real))
    beside = center + 1e-3 * vectors[:, leading].real
    faster = Counterexample("equilibrium", center, beside, -system.field(center), float(values[leading].real), -rate)
    if recheck_counterexample(faster, system):
        return Certificate("contraction_region", REFUTED, system, {"rate": rate}, {"center": center}, faster)
    best, narrow, wide = None, 1e-3, 1e2
    for _ in range(bisections):
        width = float(np.sqrt(narrow * wide))
        found = _within(system, center, rate, width)
        if found is None:
            wide = width
        else:
            narrow, best = width, found
    if best is None:
        return Certificate("contraction_region", UNKNOWN, system, {"rate": rate}, reason="no matrices were found")
    return _enlarged(best, bisections)


def _within(system: System, center: Array, rate: float, width: float) -> Certificate | None:
    """Certify the ellipsoid of least trace P that the slopes for |W(x − center)| ≤ ``width`` prove."""
    W = system.stacked[1]
    witness = largest_ellipsoid(_blocks(system, center, np.full(len(W), width)), rate, W / width)
    return None if witness is None else _region(system, center, rate, witness["P"], witness["gamma"], 1.0)


def _blocks(system: System, center: Array, radii: Array) -> Builder:
    """Make a builder of the flow's inequality with the slopes for |w_i (x − center)| ≤ radii_i."""
    A, W = system.stacked
    lower, upper = map(np.diag, system.slopes_on(W @ center - radii, W @ center + radii))
    return lambda P, gamma, bound: flow_blocks(system.A0, A, W, lower, upper, P, gamma, bound)


def _region(system: System, center: Array, rate: float, P: Array, gamma: Array, level: float) -> Certificate | None:
    W = system.stacked[1]
    radii = _radii(W, P, level)
    claim = {"rate": rate, "level": level, "input_radius": rate * float(np.sqrt(level)) * (1 - 1e-14)}
    witness = {"P": P, "gamma": gamma, "center": center, "radii": radii}
    certificate = issue("contraction_region", system, claim, witness)
    return certificate if certificate.status == CERTIFIED else None


def _radii(W: Array, P: Array, level: float) -> Array:
    """Compute radii a little above √(level · w_i P⁻¹ w_iᵀ), (K,), in floating point."""
    return np.sqrt(level * np.einsum("ki,ik->k", W, np.linalg.solve(P, W.T))) * _WIDER


def _enlarged(certificate: Certificate, bisections: int) -> Certificate:
    """Certify the largest level with the same P and new multipliers."""
    system, rate, center = certificate.system, certificate.claim["rate"], certificate.witness["center"]
    P = certificate.witness["P"]
    W = system.stacked[1]
    best, low, high = certificate, certificate.claim["level"], 16 * certificate.claim["level"]
    for _ in range(bisections):
        level = float(np.sqrt(low * high))
        gamma = multipliers_for(_blocks(system, center, _radii(W, P, level)), rate, P, len(W))
        found = None if gamma is None else _region(system, center, rate, P, gamma, level)
        if found is None:
            high = level
        else:
            best, low = found, level
    return best
