"""What a certificate that was written to JSON is worth, from the numbers in it alone."""

from typing import Any

import numpy as np

from pipeline.stability.certificate import REFUTED, UNKNOWN, Certificate, Counterexample, issue
from pipeline.stability.falsify import recheck_counterexample


def recheck(written: dict[str, Any]) -> str:
    """The status that the numbers support, whatever the certificate calls itself: ``unknown`` where neither the proof
    nor the counterexample holds.

    Args:
        written: from ``Certificate.to_dict``.

    Raises:
        ValueError: the certificate is of an unknown inequality, or claims what makes no sense.
    """
    certificate = Certificate.from_dict(written)
    if certificate.counterexample is not None:
        return REFUTED if _refutes(certificate, certificate.counterexample) else UNKNOWN
    if not certificate.witness or not _same_slopes(certificate, written["slopes"]):
        return UNKNOWN
    return issue(certificate.inequality, certificate.system, certificate.claim, certificate.witness).status


def _refutes(certificate: Certificate, found: Counterexample) -> bool:
    claim = certificate.claim
    if certificate.inequality == "iss":
        at_origin = found.kind == "equilibrium" and not found.x.any() and found.allowed == 0
        possible = at_origin or found.kind == "rest"
    else:
        possible = found.kind in {"pair", "equilibrium"} and found.allowed == claim.get(
            "ratio", -claim.get("rate", 0.0)
        )
    return possible and recheck_counterexample(
        found, certificate.system, P=certificate.witness.get("P"), step=claim.get("step")
    )


def _same_slopes(certificate: Certificate, written: dict[str, Any]) -> bool:
    """But for the last digits, in which one machine's tanh may differ from another's."""
    return all(
        np.shape(written[name]) == found.shape and np.allclose(written[name], found, rtol=1e-12, atol=1e-12)
        for name, found in zip(("lower", "upper"), certificate.slopes, strict=True)
    )
