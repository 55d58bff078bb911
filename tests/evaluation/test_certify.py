"""Certificates of residuals, and the decay measured beside them."""

import numpy as np
import pytest
import torch

from pipeline.evaluation import certify
from pipeline.evaluation.certify import certify_residual, measure_decay
from pipeline.evaluation.residual_policy import ResidualPolicy
from pipeline.nets.persidskii import FixedMatrices, PersidskiiResidual
from pipeline.training.checkpoint import build_policy
from pipeline.training.residual_checkpoint import make_residual_policy
from pipeline.utils.errors import UserError
from tests.evaluation.test_residual_policy import RECORD
from tests.nets.test_residual_nets import recipe


def trained_like(*arguments: str, spread: float = 0.3) -> ResidualPolicy:
    """Return a residual policy with perturbed parameters, as after training."""
    policy = make_residual_policy(build_policy(RECORD), recipe(*arguments), seed=0)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in policy.residual.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    policy.residual = policy.residual.fixed()
    return policy.eval()


@pytest.mark.parametrize("state", ["chunk", "step"])
def test_constructed_step_is_certified_and_bounds_the_measured_decay(state: str) -> None:
    policy = trained_like("step", state)
    assert isinstance(policy.residual, PersidskiiResidual)
    found = certify_residual(policy.residual, recipe("step", state), np.zeros(policy.residual.source.n))
    assert {"step", "flow", "iss"} <= found.keys() and ("region" in found) == (state == "step")
    assert {name: certificate.status for name, certificate in found.items()} == dict.fromkeys(found, "certified")
    assert found["step"].claim["ratio"] <= np.exp(-0.8 / 4) + 1e-12
    assert found["flow"].claim["rate"] > 0.6
    decay = measure_decay(policy, torch.randn(64, 6), 6, found["step"], seed=0)
    assert decay.certified == found["step"].claim["ratio"]
    assert 0 < decay.median <= decay.largest <= decay.certified


def test_expanding_system_is_refuted_and_measured_to_expand() -> None:
    policy = trained_like("free", "step", spread=0.0)
    residual = policy.residual
    assert isinstance(residual, PersidskiiResidual) and isinstance(residual.source, FixedMatrices)
    residual.source.linear.copy_(torch.diag(torch.tensor([0.7, -1.0])))
    found = certify_residual(residual, recipe("free", "step"), np.zeros(2))
    assert {found["step"].status, found["flow"].status} == {"refuted"}
    decay = measure_decay(policy, torch.randn(64, 6), 6, found["step"], seed=0)
    assert decay.largest > 1 and decay.certified == 0


def test_falsified_certificate_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("contraction: certified, and broken")

    monkeypatch.setattr(certify, "cross_check", broken)
    policy = trained_like("step", "step")
    assert isinstance(policy.residual, PersidskiiResidual)
    with pytest.raises(UserError, match=r"^certificate step: contraction: certified, and broken$"):
        certify_residual(policy.residual, recipe("step", "step"), np.zeros(2))
