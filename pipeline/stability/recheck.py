"""Recheck a certificate in JSON from the numbers in it alone."""

from typing import Any

import numpy as np

from pipeline.stability.certificate import (
    CERTIFIED,
    CLAIMS,
    REFUTED,
    UNKNOWN,
    Certificate,
    Counterexample,
    issue,
    refuse_senseless,
)
from pipeline.stability.falsify import recheck_counterexample
from pipeline.stability.system import numbers


def recheck(written: dict[str, Any]) -> str:
    """Derive the status that the numbers support; the written status is ignored.

    It is ``unknown`` if neither the proof nor the counterexample holds, or if the counterexample refutes the claim in
    one norm only.

    Args:
        written: from ``Certificate.to_dict``.

    Raises:
        ValueError: the inequality is unknown, the claim makes no sense, or an array holds something other than numbers.
    """
    certificate = Certificate.from_dict(written)
    if certificate.counterexample is not None:
        return REFUTED if _refutes(certificate, certificate.counterexample) else UNKNOWN
    if not certificate.witness:
        return UNKNOWN
    status = issue(certificate.inequality, certificate.system, certificate.claim, certificate.witness).status
    return CERTIFIED if status == CERTIFIED and _same_slopes(certificate, written["slopes"]) else UNKNOWN


def _refutes(certificate: Certificate, found: Counterexample) -> bool:
    claim, inequality = certificate.claim, certificate.inequality
    if inequality not in CLAIMS:
        raise ValueError(f"inequality: given {inequality!r}, allowed: {', '.join(CLAIMS)}")
    refuse_senseless(claim, {"rate"} if inequality == "contraction_region" else CLAIMS[inequality])
    n = certificate.system.n
    if any(state.shape != (n,) or not np.isfinite(state).all() for state in (found.x, found.y, found.g)):
        return False
    at_rest = found.kind == "equilibrium"
    if inequality == "iss":
        possible = found.kind == "rest" or (at_rest and not found.x.any() and found.allowed == 0)
    else:
        possible = at_rest and found.allowed == claim.get("ratio", -claim.get("rate", 0.0))
    if inequality == "contraction_region":
        possible = possible and np.array_equal(found.x, certificate.witness.get("center", np.empty(0)))
    return possible and recheck_counterexample(found, certificate.system, step=claim.get("step"))


def _same_slopes(certificate: Certificate, written: dict[str, Any]) -> bool:
    """Compare the written slopes up to the last digits, in which tanh may differ between machines."""
    return all(
        given.shape == found.shape and np.allclose(given, found, rtol=1e-12, atol=1e-12)
        for given, found in zip((numbers(written["lower"]), numbers(written["upper"])), certificate.slopes, strict=True)
    )
