"""Gaussian likelihoods of the residual against closed forms."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from pipeline.flow.covariance import (
    COVARIANCES,
    FLOOR,
    RUNNING_DECAY,
    Covariance,
    Fixed,
    Identity,
    Learned,
    Profiled,
    scaled_negative_log_likelihood,
)

GENERATOR = torch.Generator().manual_seed(0)
SPREAD = torch.tensor([[0.1, 0.5], [1.0, 2.0], [0.3, 0.7]], dtype=torch.float64)
RESIDUAL = SPREAD * torch.randn(64, 3, 2, dtype=torch.float64, generator=GENERATOR)
MEASURED = ("fixed", "learned", "profiled")


def started(kind: str, variance: Tensor) -> Covariance:
    covariance = COVARIANCES[kind](variance.shape).to(variance.dtype)
    covariance.start(variance)
    return covariance


def gradient(covariance: Covariance, residual: Tensor) -> Tensor:
    residual = residual.clone().requires_grad_()
    (found,) = torch.autograd.grad(covariance(residual), residual)
    return found


def scale_of(variance: Tensor) -> Tensor:
    return (variance.mean() / (1 / variance).mean()).sqrt()


def test_identity_is_the_mean_square_to_the_bit() -> None:
    assert torch.equal(Identity()(RESIDUAL), RESIDUAL.square().mean())
    assert list(Identity().state_dict()) == []


def test_the_loss_is_the_negative_log_likelihood_of_a_normal_law() -> None:
    variance = SPREAD.square()
    nll = -Normal(torch.zeros_like(SPREAD), SPREAD).log_prob(RESIDUAL).flatten(1).sum(1).mean()
    d = SPREAD.numel()
    expected = 2 * scale_of(variance) / d * (nll - d / 2 * math.log(2 * math.pi))
    assert torch.allclose(scaled_negative_log_likelihood(RESIDUAL, variance.log()), expected, rtol=1e-12)
    assert torch.allclose(started("fixed", variance)(RESIDUAL), expected, rtol=1e-12)
    assert torch.allclose(started("learned", variance)(RESIDUAL), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["fixed", "learned"])
@pytest.mark.parametrize("variance", [1e-3, 1.0, 50.0])
def test_equal_variances_give_the_gradient_of_the_mean_square(kind: str, variance: float) -> None:
    equal = torch.full_like(SPREAD, variance)
    assert torch.allclose(gradient(started(kind, equal), RESIDUAL), gradient(Identity(), RESIDUAL), rtol=1e-12)


@pytest.mark.parametrize("kind", MEASURED)
def test_gradient_norm_at_the_measured_variances_is_that_of_the_mean_square(kind: str) -> None:
    weighted = gradient(started(kind, RESIDUAL.square().mean(0)), RESIDUAL)
    assert torch.allclose(weighted.norm(), gradient(Identity(), RESIDUAL).norm(), rtol=1e-12)


def test_learned_variances_converge_to_the_mean_squared_residual() -> None:
    optimum = RESIDUAL.square().mean(0)
    covariance = Learned(optimum.shape).double()
    covariance.start(torch.ones_like(optimum))
    optimizer = torch.optim.Adam(covariance.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        covariance(RESIDUAL).backward()
        optimizer.step()
    assert torch.allclose(covariance.log_variance.exp(), optimum, rtol=1e-3)
    covariance.start(optimum)
    optimizer.zero_grad()
    covariance(RESIDUAL).backward()
    assert covariance.log_variance.grad is not None
    assert covariance.log_variance.grad.abs().max() < 1e-15


def test_profiled_gradient_on_the_full_batch_is_exact() -> None:
    residual = RESIDUAL.clone().requires_grad_()
    mean_square = residual.square().mean(0)
    (exact,) = torch.autograd.grad(0.5 * mean_square.log().sum(), residual)
    d, scale = SPREAD.numel(), scale_of(mean_square.detach())
    found = gradient(started("profiled", mean_square.detach()), RESIDUAL)
    assert torch.allclose(found, 2 * scale / d * exact, rtol=1e-10)


def test_running_mean_includes_the_present_batch() -> None:
    covariance, before = Profiled(SPREAD.shape).double(), 3 * SPREAD.square()
    covariance.start(before)
    loss = covariance(RESIDUAL)
    expected = RUNNING_DECAY * before + (1 - RUNNING_DECAY) * RESIDUAL.square().mean(0)
    assert torch.allclose(covariance.mean_square, expected, rtol=1e-12)
    assert torch.allclose(loss, scaled_negative_log_likelihood(RESIDUAL, expected.log()), rtol=1e-12)


@pytest.mark.parametrize("kind", MEASURED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_components_without_residual_leave_loss_and_gradient_finite(kind: str, dtype: torch.dtype) -> None:
    for zero in (slice(0, 1), slice(None)):
        residual = RESIDUAL.to(dtype, copy=True)
        residual[:, zero] = 0
        covariance = started(kind, residual.square().mean(0))
        for _ in range(3):
            found = gradient(covariance, residual)
            assert torch.isfinite(found).all()
            assert torch.isfinite(covariance(residual))


def test_variances_are_bounded_below_by_the_floor() -> None:
    variance = torch.tensor([1.0, 0.0], dtype=torch.float64)
    least = FLOOR * 0.5
    assert torch.allclose(started("fixed", variance).log_variance.exp(), torch.tensor([1.0, least]).double())
    learned = Learned(variance.shape).double()
    learned.start(torch.ones(2))
    with torch.no_grad():
        learned.log_variance[1] = -100.0
    learned(RESIDUAL[:, 0]).backward()
    assert learned.log_variance[1].exp().item() == pytest.approx(least)
    assert learned.log_variance.grad is not None
    assert learned.log_variance.grad[1] < 0  # a component with a larger residual leaves the floor again


def test_state_dict_restores_every_covariance() -> None:
    for kind in MEASURED:
        covariance = started(kind, SPREAD.square())
        covariance(RESIDUAL)
        other = COVARIANCES[kind](SPREAD.shape).double()
        other.load_state_dict(covariance.state_dict())
        assert torch.equal(other(RESIDUAL), covariance(RESIDUAL))
    assert set(Fixed(SPREAD.shape).state_dict()) == {"log_variance"}
