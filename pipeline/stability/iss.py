"""Certify input-to-state stability of system (7), |x(t)| ≤ β(|x(0)|, t) + γ(sup |g|): Theorem 3 of arXiv 2510.02081."""

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.bmat import bmat
from cvxpy.atoms.affine.diag import diag

from pipeline.stability.certificate import CERTIFIED, REFUTED, UNKNOWN, Certificate, Counterexample, issue, refuse_flat
from pipeline.stability.falsify import recheck_counterexample
from pipeline.stability.inequalities import iss_blocks
from pipeline.stability.regions import equilibria
from pipeline.stability.semidefinite import solved
from pipeline.stability.system import Array, System

_LARGEST = 1e3
"""Upper bound of the matrices in the search, except P ⪯ I and Λ ⪯ I."""


def certify_iss(system: System, *, use_slopes: bool = True) -> Certificate:
    """Certify that V' ≤ −xᵀΞ_0x + gᵀΦg for a V between multiples of |x|².

    Args:
        use_slopes: whether the proof may use the bounds of the slopes. Theorem 3 does not use them, but without them
            x' = −2x + ½ tanh(x) has no certificate.

    Returns:
        ``refuted`` if, without input, solutions leave the origin or some x ≠ 0 is at rest.

    Raises:
        ValueError: a function is not strictly increasing.
    """
    refuse_flat(system)
    witness = _search(system, use_slopes)
    if witness is not None:
        certificate = issue("iss", system, {}, witness)
        if certificate.status == CERTIFIED:
            return certificate
    found = _unrest(system)
    if found is not None:
        return Certificate("iss", REFUTED, system, {}, counterexample=found)
    return Certificate("iss", UNKNOWN, system, {}, reason="no matrices were found")


def iss_from_contraction(certificate: Certificate) -> Certificate:
    """Certify input-to-state stability with V = |x|²_P from a certificate of the flow's contraction, at any size.

    Raises:
        ValueError: the certificate is not a certified ``contraction``, or a function is not strictly increasing.
    """
    if (certificate.inequality, certificate.status) != ("contraction", CERTIFIED):
        given = f"{certificate.status} {certificate.inequality}"
        raise ValueError(f"certificate: given {given}, allowed: certified contraction")
    P, gamma, rate = certificate.witness["P"], certificate.witness["gamma"], certificate.claim["rate"]
    none = np.zeros_like(gamma)
    matrices = {"P": P, "state": rate / 2 * P, "inputs": 2 / rate * P}
    return issue("iss", certificate.system, {}, matrices | {"integral": none, "products": none, "sector": gamma})


def _search(system: System, use_slopes: bool) -> dict[str, Array] | None:
    A, W = system.stacked
    n, K = system.n, len(W)
    symmetric = {name: cp.Variable((n, n), symmetric=True) for name in ("P", "state", "inputs")}
    diagonal = {name: cp.Variable(K) for name in ("integral", "products", "sector")}
    slack = cp.Variable()
    P, state, inputs = symmetric.values()
    integral, products, sector = map(diag, diagonal.values())
    lower, upper = map(np.diag, system.slopes)
    matrix = bmat(iss_blocks(system.A0, A, W, lower, upper, P, integral, state, products, sector, inputs))
    limits = [
        matrix << -slack * np.eye(2 * n + K),
        P >> slack * np.eye(n),
        P << np.eye(n),
        state >> slack * np.eye(n),
        inputs << _LARGEST * np.eye(n),
        diagonal["integral"] <= 1,
        diagonal["products"] <= _LARGEST,
        diagonal["sector"] <= (_LARGEST if use_slopes else 0),
        slack <= 1,
    ]
    limits += [value >= 0 for value in diagonal.values()]
    if not solved(cp.Problem(cp.Maximize(slack), limits)):
        return None
    clipped = {name: np.maximum(np.asarray(value.value), 0) for name, value in diagonal.items()}
    return {name: _symmetric(np.asarray(value.value)) for name, value in symmetric.items()} | clipped


def _unrest(system: System) -> Counterexample | None:
    """Search for a state that refutes stability without input."""
    origin = np.zeros(system.n)
    value, vectors = np.linalg.eig(system.jacobian(origin))
    leading = int(np.argmax(value.real))
    found = Counterexample(
        "equilibrium", origin, 1e-3 * vectors[:, leading].real, origin, float(value[leading].real), 0.0
    )
    if recheck_counterexample(found, system):
        return found
    rests = [
        Counterexample("rest", x, origin, origin, float(np.linalg.norm(x)), 0.0) for x in equilibria(system, origin)
    ]
    return next((rest for rest in rests if recheck_counterexample(rest, system)), None)


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2
