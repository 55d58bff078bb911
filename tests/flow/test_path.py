"""Probability paths: the target is the path's derivative, and the ends are noise and data."""

import pytest
import torch
from torch import Tensor

from pipeline.flow.path import PATHS, AffinePath, i_cfm, optimal_transport

GENERATOR = torch.Generator().manual_seed(0)
X0, X1, EPSILON = (torch.randn(6, 3, 2, dtype=torch.float64, generator=GENERATOR) for _ in range(3))
SIGMAS = {"i_cfm": 0.3, "ot": 0.1}


def times(t: float) -> Tensor:
    return torch.full((6,), t, dtype=torch.float64)


@pytest.mark.parametrize("name", PATHS)
def test_the_target_is_the_paths_derivative(name: str) -> None:
    path = PATHS[name](SIGMAS[name])
    t = torch.rand(6, dtype=torch.float64, generator=GENERATOR)
    _, target = path.sample(X0, X1, t, EPSILON)
    derivative = torch.func.jvp(lambda t: path.sample(X0, X1, t, EPSILON)[0], (t,), (torch.ones_like(t),))[1]
    assert torch.allclose(target.expand_as(derivative), derivative)


@pytest.mark.parametrize(
    ("path", "start", "end"),
    [
        (i_cfm(0.0), X0, X1),
        (i_cfm(0.3), X0 + 0.3 * EPSILON, X1 + 0.3 * EPSILON),
        (optimal_transport(0.1), X0, X1 + 0.1 * X0),
    ],
    ids=["i_cfm", "noisy_i_cfm", "ot"],
)
def test_the_ends_are_noise_and_data(path: AffinePath, start: Tensor, end: Tensor) -> None:
    assert torch.allclose(path.sample(X0, X1, times(0.0), EPSILON)[0], start)
    assert torch.allclose(path.sample(X0, X1, times(1.0), EPSILON)[0], end)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_the_marginal_has_the_moments_that_the_coefficients_say(name: str, t: float) -> None:
    n, sigma = 200_000, SIGMAS[name]
    generator = torch.Generator().manual_seed(1)
    x0, epsilon = (torch.randn(n, 1, dtype=torch.float64, generator=generator) for _ in range(2))
    x1 = torch.full((n, 1), 2.0, dtype=torch.float64)
    x_t, _ = PATHS[name](sigma).sample(x0, x1, torch.full((n,), t, dtype=torch.float64), epsilon)
    noise = {"i_cfm": (1 - t) ** 2 + sigma**2, "ot": (1 - (1 - sigma) * t) ** 2}[name]
    assert x_t.mean().item() == pytest.approx(2 * t, abs=0.01)
    assert x_t.var().item() == pytest.approx(noise, rel=0.02, abs=1e-12)


def test_a_noisy_path_asks_for_its_noise() -> None:
    with pytest.raises(ValueError, match="epsilon is needed"):
        i_cfm(0.1).sample(X0, X1, times(0.5))
