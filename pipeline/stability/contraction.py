"""Certify contraction of system (7) and of its Euler map, with given matrices or by a search for matrices.

A search takes longer for larger systems: a second at n = K = 16, up to a minute at 32, for each bound tried. Suppose
that H action steps share one system of n states, which acts on each step separately. The whole system is then
(I_H ⊗ A0, I_H ⊗ A_j, I_H ⊗ W_j). I_H ⊗ P and I_H ⊗ Γ prove the same for it as P and Γ for the block, so certify the
block. Systems contracting by construction need no search at any size, because their P and Γ are given;
``largest_rate_in`` and ``smallest_ratio_in`` find the best claim that these prove.
"""

from collections.abc import Callable

import numpy as np

from pipeline.stability.certificate import CERTIFIED, REFUTED, UNKNOWN, Certificate, issue
from pipeline.stability.certificate import input_gain as input_gain  # re-exported: it takes the certificates made here
from pipeline.stability.falsify import expanding_pair
from pipeline.stability.inequalities import Blocks, flow_blocks, step_blocks
from pipeline.stability.semidefinite import NormSearch
from pipeline.stability.system import Array, System

Claim = Callable[[float], dict[str, float]]


def certify_flow(system: System, rate: float, P: Array | None = None, gamma: Array | None = None) -> Certificate:
    """Certify that |δ(t)|_P ≤ e^{−rate·t} |δ(0)|_P for any two solutions with one input.

    Args:
        P, gamma: the norm (n, n) and the multipliers (K,), all in one vector; searched for if absent.

    Returns:
        ``refuted`` if an equilibrium refutes the claim in every norm. ``unknown``, with a pair of states, if P is given
        and the pair refutes the claim only in P.

    Raises:
        ValueError: the rate is not above 0, or the matrices do not fit, or P is not positive definite.
    """
    if not rate > 0:
        raise ValueError(f"rate: given {rate}, allowed: above 0")
    witness = _given(system, P, gamma) or flow_search(system).solve(rate)
    return _settled("contraction", system, {"rate": rate}, witness, P)


def certify_step(
    system: System, ratio: float, step: float, P: Array | None = None, gamma: Array | None = None
) -> Certificate:
    """Certify that |δ⁺|_P ≤ ratio · |δ|_P for any two states after an Euler step; as ``certify_flow``.

    Raises:
        ValueError: the ratio is not in (0, 1], or the step not above 0, or the matrices do not fit.
    """
    if not (0 < ratio <= 1 and step > 0):
        raise ValueError(f"ratio, step: given {ratio}, {step}, allowed: in (0, 1], above 0")
    witness = _given(system, P, gamma) or step_search(system, step).solve(ratio**2)
    return _settled("contraction_step", system, {"ratio": ratio, "step": step}, witness, P)


def largest_rate(system: System, tolerance: float = 1e-2) -> Certificate:
    """Certify the largest rate that ``certify_flow`` can prove, within a relative tolerance."""
    search = flow_search(system)
    top = float(-np.linalg.eigvals(_sampled_jacobians(system)).real.max())
    if top <= 0:
        return certify_flow(system, 1e-6)
    best = _bisected(system, "contraction", lambda rate: {"rate": rate}, search.solve, top * 1e-3, top, tolerance * top)
    return best or certify_flow(system, top * 1e-3)


def smallest_ratio(system: System, step: float, tolerance: float = 1e-3) -> Certificate:
    """Certify the smallest ratio that ``certify_step`` can prove, within a tolerance.

    The ratio is 1 only if no smaller one was proved.
    """
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
            min(tolerance, (1 - bottom) / 10),
        )
    if best is not None and best.claim["ratio"] == 1:
        better = smallest_ratio_in(system, step, best.witness["P"], best.witness["gamma"], (1 - bottom) / 10)
        best = better if better.status == CERTIFIED else best
    return best or certify_step(system, 1.0, step)


def largest_rate_in(system: System, P: Array, gamma: Array, tolerance: float = 1e-2) -> Certificate:
    """Certify the largest rate in the norm P (n, n), with a multiple of the multipliers gamma (K,).

    This needs no semidefinite program, so it works at any size (seconds at n = K = 320). The rate is at least the one
    that the given matrices prove, up to rounding.

    Raises:
        ValueError: the matrices do not fit.
    """
    witness = _given(system, P, gamma)
    A, W = system.stacked
    lower, upper = map(np.diag, system.slopes)

    def growth(scale: float) -> float:
        """Twice the least −rate for which the inequality holds, by its Schur complement."""
        blocks = flow_blocks(system.A0, A, W, lower, upper, P, np.diag(scale * gamma), 0.0)
        return _least_weight(blocks, P)

    scale = _best_multiple(growth)
    best = _proved_near(
        "contraction", system, lambda rate: {"rate": rate}, -growth(scale) / 2, 0.0, witness, scale, tolerance
    )
    return best or certify_flow(system, 1e-6, P, gamma)


def smallest_ratio_in(system: System, step: float, P: Array, gamma: Array, tolerance: float = 1e-3) -> Certificate:
    """Certify the smallest ratio in the norm P, with a multiple of the multipliers gamma; see ``largest_rate_in``.

    Raises:
        ValueError: the matrices do not fit.
    """
    witness = _given(system, P, gamma)
    A, W = system.stacked
    lower, upper = map(np.diag, system.slopes)
    M0 = np.eye(system.n) + step * system.A0

    def growth(scale: float) -> float:
        """The least squared ratio for which the inequality holds, by its Schur complement."""
        blocks = step_blocks(M0, step * A, W, lower, upper, P, np.diag(scale * gamma), 0.0)
        return _least_weight(blocks, P)

    scale = _best_multiple(growth)
    ratio = float(np.sqrt(max(growth(scale), 1e-12)))
    best = _proved_near(
        "contraction_step", system, lambda r: {"ratio": r, "step": step}, ratio, 1.0, witness, scale, tolerance
    )
    return best or certify_step(system, 1.0, step, P, gamma)


def flow_search(system: System) -> NormSearch:
    """Prepare the search for P and Γ of the flow; its bound is the rate."""
    A, W = system.stacked
    lower, upper = map(np.diag, system.slopes)
    return NormSearch(
        lambda P, gamma, rate: flow_blocks(system.A0, A, W, lower, upper, P, gamma, rate), system.n, len(W)
    )


def step_search(system: System, step: float) -> NormSearch:
    """Prepare the search for P and Γ of the Euler map; its bound is the squared ratio."""
    A, W = system.stacked
    lower, upper = map(np.diag, system.slopes)
    M0 = np.eye(system.n) + step * system.A0
    return NormSearch(
        lambda P, gamma, squared: step_blocks(M0, step * A, W, lower, upper, P, gamma, squared), system.n, len(W)
    )


def _given(system: System, P: Array | None, gamma: Array | None) -> dict[str, Array]:
    """Check P and gamma and make them a witness, which is empty if neither is given."""
    if P is None and gamma is None:
        return {}
    if P is None or gamma is None:
        raise ValueError("P, gamma: given one of them, allowed: both or neither")
    shapes = (system.n, system.n), (len(system.stacked[1]),)
    if (P.shape, gamma.shape) != shapes or (P != P.T).any():
        raise ValueError(f"P, gamma: given {P.shape}, {gamma.shape}, allowed: {shapes[0]}, symmetric, {shapes[1]}")
    if not (np.isfinite(P).all() and np.isfinite(gamma).all() and np.linalg.eigvalsh(P)[0] > 0):
        raise ValueError("P, gamma: given others, allowed: finite numbers, P positive definite")
    return {"P": P, "gamma": gamma}


def _settled(
    inequality: str, system: System, claim: dict[str, float], witness: dict[str, Array] | None, P: Array | None
) -> Certificate:
    """Try to prove the claim by the witness, then to refute it in every norm, then in the given P (unknown)."""
    if witness is not None:
        proved = issue(inequality, system, claim, witness)
        if proved.status == CERTIFIED:
            return proved
    allowed, step = claim.get("ratio", -claim.get("rate", 0.0)), claim.get("step")
    found = expanding_pair(system, allowed, step=step)
    if found is not None:
        return Certificate(inequality, REFUTED, system, claim, counterexample=found)
    if P is None:
        return Certificate(inequality, UNKNOWN, system, claim, reason="no matrices were found")
    pair = expanding_pair(system, allowed, P=P, step=step)
    if pair is None:
        return Certificate(inequality, UNKNOWN, system, claim, reason="the matrices given do not prove the inequality")
    reason = "two states separate faster in the norm that was given"
    return Certificate(inequality, UNKNOWN, system, claim, {"P": P}, pair, reason)


def _least_weight(blocks: Blocks, P: Array) -> float:
    """Compute the least s with blocks − diag(sP, 0) ⪯ 0, in floating point; infinite if there is none."""
    (first, coupling), (_, second) = blocks
    try:
        root = np.linalg.cholesky(-second)
        factor = np.linalg.cholesky(P)
    except np.linalg.LinAlgError:
        return float(np.inf)
    reach = np.linalg.solve(root, coupling.T)
    seen = np.linalg.solve(factor, np.linalg.solve(factor, first + reach.T @ reach).T)
    return float(np.linalg.eigvalsh((seen + seen.T) / 2)[-1])


def _best_multiple(growth: Callable[[float], float]) -> float:
    """Find the multiple of the multipliers with about the least growth, never worse than 1; growth is unimodal."""
    scale, factor = 1.0, 1024.0
    least = growth(scale)
    while factor > 1.02:
        for tried in (scale * factor, scale / factor):
            value = growth(tried)
            if value < least:
                scale, least = tried, value
                break
        else:
            factor = float(np.sqrt(factor))
    return scale


def _proved_near(
    inequality: str,
    system: System,
    claim: Claim,
    limit: float,
    least: float,
    witness: dict[str, Array],
    scale: float,
    tolerance: float,
) -> Certificate | None:
    """Find the certificate nearest to ``limit``, between it and ``least``, that P and this multiple of gamma prove."""
    if not np.isfinite(limit) or (limit >= 1 if least else limit <= 0):
        return None
    matrices = witness | {"gamma": scale * witness["gamma"]}
    hard = limit
    for part in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.99):
        easy = limit + part * (least - limit)
        near = tolerance * (1.0 if least else limit)
        best = _bisected(system, inequality, claim, lambda _: matrices, easy, hard, near)
        if best is not None:
            return best
        hard = easy
    return None


def _bisected(
    system: System,
    inequality: str,
    claim: Claim,
    solve: Callable[[float], dict[str, Array] | None],
    easy: float,
    hard: float,
    tolerance: float,
) -> Certificate | None:
    """Bisect between ``easy`` and ``hard`` for the proved certificate nearest to ``hard``; None if ``easy`` fails."""

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
    """Compute the Jacobians at random states, (B, n, n); they bound the contraction in any norm."""
    generator = np.random.default_rng(0)
    return system.jacobian(generator.standard_normal((64, system.n)) * np.exp(generator.uniform(-5, 3, (64, 1))))
