"""The exact marginal field against independent definitions."""

import pytest
import torch
from torch import Tensor

from pipeline.flow.marginal import MarginalField, eight_points, two_points
from pipeline.flow.path import AffinePath, i_cfm, optimal_transport
from pipeline.ode.fixed_step import solve, uniform_grid

PATHS = {"i_cfm": i_cfm(0.3), "ot": optimal_transport(0.1)}


def states(count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_field_of_one_point_is_the_flow_of_a_gaussian(path: AffinePath) -> None:
    # the marginal is N(α x1, s² I), which x ↦ α x1 + s (x0 − 0)/s(0) transports: solve from 0 and compare
    point, starts = torch.tensor([[0.7, -1.2]], dtype=torch.float64), states(16, 2)
    end = solve(MarginalField(point, path), starts, uniform_grid(400, "rk4", end=0.9), "rk4")
    time = torch.tensor([0.0, 0.9], dtype=torch.float64)
    spread = (path.sigma(time) ** 2 + path.spread**2).sqrt()
    torch.testing.assert_close(end, path.alpha(time[1]) * point + spread[1] / spread[0] * starts, rtol=0, atol=1e-8)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_field_is_the_conditional_mean_of_the_target(path: AffinePath) -> None:
    # by a self-normalised average over pairs: each datum's noise is what leads to x, weighted by its density
    points, t, x = two_points(), torch.tensor([0.6], dtype=torch.float64), torch.tensor([[0.35]], dtype=torch.float64)
    epsilon = torch.randn(400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    top = bottom = 0.0
    for point in points[:, 0]:
        noise = (x[0, 0] - path.alpha(t) * point - path.spread * epsilon) / path.sigma(t)
        weight = torch.exp(-(noise**2) / 2)
        top += (weight * (path.alpha_rate(t) * point + path.sigma_rate(t) * noise)).sum()
        bottom += weight.sum()
    assert float(MarginalField(points, path)(0.6, x)) == pytest.approx(float(top / bottom), abs=5e-3)


def test_acceleration_is_the_second_derivative_along_a_solved_path() -> None:
    field, step = MarginalField(eight_points(), i_cfm(0.3)), 1e-3
    here = states(32, 2)
    around = [solve(field, here, [0.5, 0.5 + sign * step], "rk4") for sign in (-1, 1)]
    expected = (around[0] - 2 * here + around[1]) / step**2
    torch.testing.assert_close(field.acceleration(0.5, here), expected, rtol=1e-4, atol=1e-4)
    times = torch.linspace(0.1, 0.9, 32, dtype=torch.float64)
    apart = [field.acceleration(float(time), here[row : row + 1]) for row, time in enumerate(times)]
    torch.testing.assert_close(field.acceleration(times, here), torch.cat(apart))
