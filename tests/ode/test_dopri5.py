"""The adaptive solve: its error, its grid and its count of evaluations."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pipeline.ode import dopri5

X0 = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_the_error_follows_the_tolerance_in_both_directions(tolerance: float) -> None:
    for start, end in ((0.0, 1.0), (1.0, 0.0)):
        found = dopri5.solve(lambda t, x: 2 * t * x, X0, start=start, end=end, rtol=tolerance, atol=tolerance)
        assert torch.allclose(found.end, X0 * math.exp(end**2 - start**2), rtol=10 * tolerance)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_grid_leads_from_start_to_end_and_the_field_is_asked_nowhere_else(start: float, end: float) -> None:
    times: list[float] = []

    def field(t: float, x: Tensor) -> Tensor:
        times.append(t)
        return torch.sin(20 * x) + t

    found = dopri5.solve(field, X0, start=start, end=end)
    assert (found.grid[0], found.grid[-1]) == (start, end)
    assert all((later - earlier) * (end - start) > 0 for earlier, later in pairwise(found.grid))
    assert found.nfe == len(times) > dopri5.EVALUATIONS * (len(found.grid) - 1)
    assert min(times) >= 0 and max(times) <= 1


def test_no_gradient_is_recorded() -> None:
    assert not dopri5.solve(lambda _t, x: -x, X0.clone().requires_grad_()).end.requires_grad
