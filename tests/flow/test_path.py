"""Probability paths: the target is the path's derivative, and the ends are noise and data."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchcfm.conditional_flow_matching import VariancePreservingConditionalFlowMatcher

from pipeline.flow.path import (
    PATHS,
    STILL,
    AffinePath,
    i_cfm,
    optimal_transport,
    stochastic_interpolant,
    variance_exploding,
    variance_preserving,
)

GENERATOR = torch.Generator().manual_seed(0)
X0, X1, EPSILON = (torch.randn(6, 3, 2, dtype=torch.float64, generator=GENERATOR) for _ in range(3))
SIGMAS = {"i_cfm": 0.3, "ot": 0.1, "vp": 0.0, "ve": 0.01, "si": 0.2}
VP_INTEGRAL = 0.1 + 19.9 / 2  # of β over the whole path


def times(t: float) -> Tensor:
    return torch.full((6,), t, dtype=torch.float64)


@pytest.mark.parametrize("name", PATHS)
def test_the_target_is_the_paths_derivative(name: str) -> None:
    path = PATHS[name](SIGMAS[name])
    t = torch.rand(6, dtype=torch.float64, generator=GENERATOR)
    _, target = path.sample(X0, X1, t, EPSILON)
    derivative = torch.func.jvp(lambda t: path.sample(X0, X1, t, EPSILON)[0], (t,), (torch.ones_like(t),))[1]
    assert torch.allclose(target.expand_as(derivative), derivative)


@pytest.mark.parametrize("name", PATHS)
@given(t=st.floats(1e-5, 1 - 1e-4))
def test_the_rates_are_the_slopes_of_the_coefficients(name: str, t: float) -> None:
    path, h = PATHS[name](SIGMAS[name]), 1e-6
    here, around = torch.tensor(t, dtype=torch.float64), torch.tensor([t - h, t + h], dtype=torch.float64)
    for coefficient, rate in ((path.alpha, path.alpha_rate), (path.sigma, path.sigma_rate)):
        below, above = coefficient(around).tolist()
        assert float(rate(here)) == pytest.approx((above - below) / (2 * h), rel=1e-3, abs=1e-8)


@given(t=st.floats(0, 1))
def test_points_of_the_path_have_the_coefficients_of_the_literature(t: float) -> None:
    time, s = torch.tensor(t, dtype=torch.float64), max(1 - t, STILL)
    expected = {
        "i_cfm": (t, 1 - t),
        "ot": (t, 1 - 0.9 * t),
        "vp": (math.exp(-(19.9 * s**2 / 4) - 0.1 * s / 2), math.sqrt(1 - math.exp(-(19.9 * s**2 / 2) - 0.1 * s))),
        "ve": (1.0, 0.01 * (100 / 0.01) ** (1 - t)),
        "si": (math.sin(math.pi * t / 2), math.cos(math.pi * t / 2)),
    }
    for name, (alpha, sigma) in expected.items():
        path = PATHS[name](SIGMAS[name])
        assert path.alpha(time).item() == pytest.approx(alpha, rel=1e-12, abs=1e-15)
        assert path.sigma(time).item() == pytest.approx(sigma, rel=1e-9, abs=1e-15)
        spread = SIGMAS[name] if name in ("i_cfm", "si") else 0.0
        point, _ = path.sample(X0, X1, times(t), EPSILON)
        torch.testing.assert_close(point, alpha * X1 + sigma * X0 + spread * EPSILON)


def test_the_trigonometric_path_is_torchcfms_variance_preserving_one() -> None:
    t, peer = torch.rand(6, dtype=torch.float64, generator=GENERATOR), VariancePreservingConditionalFlowMatcher(0.2)
    x_t, target = stochastic_interpolant(0.2).sample(X0, X1, t, EPSILON)
    torch.testing.assert_close(x_t, peer.sample_xt(X0, X1, t, EPSILON))
    torch.testing.assert_close(target, peer.compute_conditional_flow(X0, X1, t, x_t))


@pytest.mark.parametrize(
    ("path", "start", "end"),
    [
        (i_cfm(0.0), X0, X1),
        (i_cfm(0.3), X0 + 0.3 * EPSILON, X1 + 0.3 * EPSILON),
        (optimal_transport(0.1), X0, X1 + 0.1 * X0),
        (
            variance_preserving(),
            math.exp(-VP_INTEGRAL / 2) * X1 + math.sqrt(1 - math.exp(-VP_INTEGRAL)) * X0,
            math.sqrt(1 - 1e-6) * X1 + 1e-3 * X0,
        ),
        (variance_exploding(0.01, sigma_max=5.0), X1 + 5.0 * X0, X1 + 0.01 * X0),
        (stochastic_interpolant(0.2), X0 + 0.2 * EPSILON, X1 + 0.2 * EPSILON),
    ],
    ids=["i_cfm", "noisy_i_cfm", "ot", "vp", "ve", "noisy_si"],
)
def test_the_ends_are_noise_and_data(path: AffinePath, start: Tensor, end: Tensor) -> None:
    assert torch.allclose(path.sample(X0, X1, times(0.0), EPSILON)[0], start)
    assert torch.allclose(path.sample(X0, X1, times(1.0), EPSILON)[0], end, atol=2e-6)


def test_noisy_path_needs_epsilon() -> None:
    with pytest.raises(ValueError, match="epsilon is needed"):
        i_cfm(0.1).sample(X0, X1, times(0.5))


def test_vp_rates_are_zero_near_the_end_and_bounded_before() -> None:
    path, last = variance_preserving(), torch.tensor([1 - 2 * STILL, 1 - STILL / 2, 1.0])
    assert path.sigma_rate(last)[0] < -30 and path.sigma_rate(last)[1:].tolist() == [0.0, 0.0]
    assert path.alpha_rate(last)[0] > 0 and path.alpha_rate(last)[1:].tolist() == [0.0, 0.0]
    assert path.sigma(last)[1] == path.sigma(last)[2] > 0
    assert float(path.sigma_rate(torch.linspace(0, 1, 1_000_001, dtype=torch.float64)).abs().max()) < 50


@pytest.mark.parametrize(("name", "sigma"), [("vp", 0.1), ("ve", 0.0), ("ve", 100.0)])
def test_invalid_sigma_of_a_path_is_refused(name: str, sigma: float) -> None:
    with pytest.raises(ValueError, match=f"sigma of path {name}: given {sigma}, allowed: "):
        PATHS[name](sigma)
