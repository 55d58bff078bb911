"""Input-to-state stability: certified, refuted and excluded systems."""

import numpy as np
import pytest
import torch

from pipeline.stability.certificate import Certificate
from pipeline.stability.contraction import certify_flow, certify_step
from pipeline.stability.falsify import cross_check, diverging_input, excess_dissipation
from pipeline.stability.inequalities import iss_blocks
from pipeline.stability.iss import certify_iss, iss_from_contraction
from pipeline.stability.parameterization import ContractingFlow
from pipeline.stability.recheck import recheck
from pipeline.stability.system import System
from tests.stability.test_contraction import scalar


def test_positive_feedback_needs_the_slopes() -> None:
    line = scalar(-2, 0.5, "tanh")
    assert certify_iss(line).status == "certified"
    assert certify_iss(line, use_slopes=False).status == "unknown"


def test_unbounded_negative_feedback_needs_no_linear_part() -> None:
    found = certify_iss(scalar(0, -1, "leaky_relu"))
    assert found.status == "certified" and recheck(found.to_dict()) == "certified"
    # bounded feedback gives way to a large input
    assert certify_iss(scalar(0, -1, "arctan")).status == "unknown"
    assert diverging_input(scalar(0, -1, "arctan"), size=1.0) is None
    assert diverging_input(scalar(0, -1, "arctan"), size=3.0) is not None


def test_other_states_at_rest_refute_iss() -> None:
    unstable = certify_iss(scalar(-1, 2, "tanh"))
    assert unstable.status == "refuted" and unstable.counterexample is not None
    assert recheck(unstable.to_dict()) == "refuted"
    # stable at the origin, where 4 (arctan − tanh) is flat, and at rest further out
    far = System([[-0.1]], ([[-4.0]], [[4.0]]), ([[1.0]], [[1.0]]), ("tanh", "arctan"))
    found = certify_iss(far)
    assert found.status == "refuted" and found.counterexample is not None and found.counterexample.kind == "rest"
    assert recheck(found.to_dict()) == "refuted"


def test_random_certificates_survive_their_worst_inputs() -> None:
    certified = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        n, k = int(draw.integers(1, 4)), int(draw.integers(1, 4))
        A0 = -draw.uniform(1, 3) * np.eye(n) + 0.5 * draw.standard_normal((n, n))
        system = System(
            A0, (draw.uniform(0, 1) * draw.standard_normal((n, k)),), (draw.standard_normal((k, n)),), ("softsign",)
        )
        found = certify_iss(system)
        cross_check(found, system, seed=seed)
        certified += found.status == "certified"
    assert 10 < certified < 40


def test_contraction_implies_stability() -> None:
    torch.manual_seed(0)
    large = ContractingFlow(32, [16, 16], ["tanh", "leaky_relu"], 0.7)
    for flow in (certify_flow(large.system(), 0.7, *large.witness()), certify_flow(scalar(-2, 0.5, "tanh"), 1.0)):
        found = iss_from_contraction(flow)
        assert found.status == "certified" and found.inequality == "iss" and recheck(found.to_dict()) == "certified"
        cross_check(found, flow.system)
    for other in (
        certify_step(scalar(-2, 0.5, "tanh"), 0.95, 0.1),
        Certificate("contraction", "unknown", scalar(-2, 0.5, "tanh"), {"rate": 1.0}),
    ):
        with pytest.raises(ValueError, match="allowed: certified contraction"):
            iss_from_contraction(other)
    with pytest.raises(ValueError, match="strictly increasing"):
        iss_from_contraction(certify_flow(scalar(-2, 1, "relu"), 0.5))


def test_relu_is_refused_since_the_theorem_is_false_of_it() -> None:
    # x' = −relu(x) + g drifts to −∞ though matrices exist that satisfy the theorem's conditions
    drifting = scalar(0, -1, "relu")
    with pytest.raises(ValueError, match="functions: given relu, allowed: strictly increasing"):
        certify_iss(drifting)
    # with P = 0, Λ = Ξ = 1 and Φ = 9: Q ⪯ 0, and xᵀ(P + WᵀΛW)x and xᵀ(Ξ_0 + WᵀΞW)x are positive
    one, none = np.ones((1, 1)), np.zeros((1, 1))
    blocks = iss_blocks(none, -one, one, none, one, none, one, none, none, none, 9 * one)
    blocks[1][1] = blocks[1][1] + one
    assert np.linalg.eigvalsh(np.block(blocks))[-1] <= 0
    found = diverging_input(drifting)
    assert found is not None and found.y[0] < -1000 and found.g[0] == -1


def test_false_iss_certificate_is_broken() -> None:
    true = certify_iss(scalar(-2, 0.5, "tanh"))
    worse = scalar(-0.1, 0.5, "tanh")
    false = Certificate("iss", "certified", worse, {}, true.witness)
    assert excess_dissipation(false) is not None
    with pytest.raises(AssertionError, match="certified, and broken"):
        cross_check(false, worse)
    assert recheck(false.to_dict()) == "unknown"
