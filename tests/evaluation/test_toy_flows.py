"""Steepness and detours of flows with known values."""

import pytest
import torch
from torch import Tensor

from pipeline.evaluation.toy_flows import measure_detours, measure_exact_detours, measure_steepness
from pipeline.flow.marginal import MarginalField, eight_points, two_points
from pipeline.flow.path import i_cfm


def starts() -> Tensor:
    return torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_steepness_matches_the_closed_form() -> None:
    exact = MarginalField(two_points(), i_cfm(0.3))
    steepness = measure_steepness(lambda _t, x: -3 * x, exact)
    assert steepness.learned == pytest.approx(3)
    assert steepness.exact[0] == pytest.approx(1 / 1.09)  # at t = 0: x0's share of the variance
    assert steepness.exact[-1] == pytest.approx(1 / 0.09)  # at t = 1: tanh(x / sigma²), steepest at zero
    assert steepness.velocity.shape == (len(steepness.places), len(steepness.times))
    assert steepness.apart == pytest.approx(steepness.start_apart * (1 - 3 / 400) ** 400)


def test_a_straight_flow_makes_no_detour_and_a_turning_one_does() -> None:
    points = eight_points()
    straight = measure_detours(lambda _t, x: torch.ones_like(x), points, starts(), 4, 5)
    assert straight.length == pytest.approx(1)
    assert straight.shown.shape == (5, 5, 2)

    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64) * 2 * torch.pi
    turning = measure_detours(lambda _t, x: x @ turn.T, points, starts(), 400, 5)
    assert turning.length > 5  # once round, back to the start


def test_collapse_shows_in_the_spread_and_in_the_fine_solve() -> None:
    points = eight_points()
    # one Euler step to zero; the flow ends at x/e
    collapsed = measure_detours(lambda _t, x: -x, points, starts(), 1, 5)
    assert collapsed.spread == pytest.approx(0) and collapsed.error == pytest.approx(2)
    assert collapsed.fine_error < 1.9


def test_the_exact_flow_ends_at_the_data() -> None:
    exact = measure_exact_detours(MarginalField(eight_points(), i_cfm(0.05)), starts(), 5)
    assert exact.error < 0.1 and exact.spread == pytest.approx(1, abs=0.1)
    assert exact.error == exact.fine_error and 1 < exact.length < 2
