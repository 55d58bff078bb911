"""Paths to Gaussian data N(m, s²): the exact marginal field is affine, and its flow carries the source to the data."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pipeline.flow.marginal import MarginalField, eight_points
from pipeline.flow.path import PATHS, AffinePath
from pipeline.ode.fixed_step import solve, uniform_grid

EXAMPLES = {
    name: PATHS[name](sigma) for name, sigma in {"i_cfm": 0.01, "ot": 0.01, "vp": 0.0, "ve": 0.01, "si": 0.0}.items()
}
MEAN, DEVIATION = 0.4, 0.6


@dataclass(frozen=True)
class GaussianField:
    """u(t, x) = α' m + (α α' s² + σ σ')/V · (x − α m), V = α² s² + σ² + spread² being the marginal's variance."""

    path: AffinePath
    mean: float
    deviation: float

    def variance(self, t: Tensor) -> Tensor:
        return (self.path.alpha(t) * self.deviation) ** 2 + self.path.sigma(t) ** 2 + self.path.spread**2

    def __call__(self, t: float, x: Tensor) -> Tensor:
        time, path = torch.tensor(t, dtype=x.dtype), self.path
        alpha, rate = path.alpha(time), path.alpha_rate(time)
        covariance = alpha * rate * self.deviation**2 + path.sigma(time) * path.sigma_rate(time)
        return rate * self.mean + covariance / self.variance(time) * (x - alpha * self.mean)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("t", [0.15, 0.5, 0.8])
def test_gaussian_field_is_the_conditional_mean_of_the_target(name: str, t: float) -> None:
    # E[α' x1 + σ' x0 | x_t = x] as the integral over x1 of target · density, x0 = (x − α x1)/σ where there is no spread
    path, time = EXAMPLES[name], torch.tensor([t], dtype=torch.float64)
    if path.spread:
        path = PATHS[name](0.0)
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    x1 = MEAN + DEVIATION * torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    x0 = (x - path.alpha(time) * x1) / path.sigma(time)
    weight = torch.softmax(-(x0**2) / 2 - ((x1 - MEAN) / DEVIATION) ** 2 / 2, dim=1)
    expected = (weight * (path.alpha_rate(time) * x1 + path.sigma_rate(time) * x0)).sum(1, keepdim=True)
    torch.testing.assert_close(GaussianField(path, MEAN, DEVIATION)(t, x), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_exact_flow_carries_the_source_to_the_data(name: str) -> None:
    path = EXAMPLES[name]
    field = GaussianField(path, MEAN, DEVIATION)
    # the flow is affine, so three states determine it
    starts = path.source_scale * torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    low, middle, high = solve(field, starts, uniform_grid(8000, "rk4"), "rk4")[:, 0].tolist()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    (start, end), (variance_0, variance_1) = path.alpha(ends).tolist(), field.variance(ends).tolist()
    shrinks = math.sqrt(variance_1 / variance_0)
    assert middle == pytest.approx(end * MEAN - shrinks * start * MEAN, abs=1e-5)
    assert (high - low) / 2 == pytest.approx(shrinks * path.source_scale, rel=1e-5)
    # up to the noise that the path keeps, those are the moments of the data
    assert middle == pytest.approx(MEAN, abs=0.01)
    assert (high - low) / 2 == pytest.approx(DEVIATION, rel=0.001)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_exact_field_of_a_finite_data_set_ends_on_its_points(name: str) -> None:
    path, points = EXAMPLES[name], eight_points()
    noise = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    field = MarginalField(points, path)
    end = solve(field, path.source_scale * noise, uniform_grid(800, "rk4", end=0.995), "rk4")
    away, nearest = torch.cdist(end, points).min(dim=1)
    assert away.max() < 0.2 and len(nearest.unique()) == 8
