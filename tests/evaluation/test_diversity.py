"""Spread, best-of-K and reconstruction error of models with known values."""

import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluation.diversity import measure_diversity
from pipeline.evaluation.policy import FlowPolicy
from tests.training.helpers import vector_policy


class Widen(nn.Module):
    """v = (s − 1) x + m: one Euler step sends noise x to s x + m."""

    def __init__(self, spread: float, mean: float) -> None:
        super().__init__()
        self.spread, self.mean = spread, mean

    def forward(self, _t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        return (self.spread - 1) * x + self.mean


def policy(spread: float, mean: float = 0.0) -> FlowPolicy:
    return vector_policy(Widen(spread, mean), action=2, horizon=4)


CONDITION, ACTION = torch.zeros(2000, 1), torch.zeros(2000, 4, 2)


@pytest.mark.parametrize(("spread", "mean"), [(0.5, 0.0), (0.5, 2.0), (0.0, 2.0)])
def test_metrics_of_gaussian_samples_match_their_closed_form(spread: float, mean: float) -> None:
    figures = measure_diversity(policy(spread, mean), CONDITION, ACTION, nfe=1)
    assert figures.spread == pytest.approx(spread, rel=0.01, abs=1e-6)
    assert figures.reconstruction_error == pytest.approx(math.hypot(spread, mean), rel=0.01)
    assert figures.best_of_k <= figures.reconstruction_error
    if spread == 0:
        assert figures.best_of_k == pytest.approx(mean)


def test_best_of_k_detects_a_lost_mode_that_the_mean_error_misses() -> None:
    """For data at ±1, samples at both have the same mean error as samples at one."""
    modes = torch.where(torch.arange(2000) % 2 == 0, 1.0, -1.0)[:, None, None].expand(2000, 4, 2)

    class Both(nn.Module):
        def forward(self, _t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
            return torch.sign(x[:, :1, :1]).expand_as(x) - x

    both, one = policy(1.0), policy(0.0, 1.0)
    both.net = Both()
    kept, lost = (measure_diversity(model, CONDITION, modes, nfe=1) for model in (both, one))
    assert kept.reconstruction_error == pytest.approx(lost.reconstruction_error, rel=0.03)
    assert kept.best_of_k < 0.05 < 1 < lost.best_of_k
    assert lost.spread < 1e-6 < kept.spread


def test_two_models_are_compared_on_the_same_noise() -> None:
    first = measure_diversity(policy(0.5), CONDITION[:5], ACTION[:5], nfe=1, seed=3)
    assert measure_diversity(policy(0.5), CONDITION[:5], ACTION[:5], nfe=1, seed=3) == first
    assert measure_diversity(policy(1.0), CONDITION[:5], ACTION[:5], nfe=1, seed=3).spread == pytest.approx(
        2 * first.spread
    )
    assert measure_diversity(policy(0.5), CONDITION[:5], ACTION[:5], nfe=1, seed=4) != first
