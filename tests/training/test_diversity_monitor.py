"""The diversity monitor compares spread and errors with the base model's, for fields in closed form."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.tasks.normalizer import Normalizer
from pipeline.training.data import PreparedData
from pipeline.training.diversity_monitor import REFERENCE_NFE, DiversityMonitor
from tests.training.helpers import vector_policy


class Straight(nn.Module):
    """Takes noise straight to the sign of its first component, or to one sign, at any number of Euler steps."""

    def __init__(self, sign: float | None = None) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        mode = torch.sign(x[:, :1, :1]) if self.sign is None else self.sign
        return (mode - x) / (1 - t)[:, None, None]


def monitor() -> DiversityMonitor:
    """Return a monitor of a base model that has both modes of the data, ±1 with deviation 0.05."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (200, 1, 1), generator=generator) * 2.0 - 1
    action, nothing = sign + 0.05 * torch.randn(200, 1, 2, generator=generator), torch.zeros(200, 1)
    data = PreparedData(nothing, action, nothing, action, Normalizer(1), Normalizer(2))
    return DiversityMonitor(vector_policy(Straight(), action=2), data, seed=0)


def test_ratios_of_the_base_model_to_itself_are_one() -> None:
    reading = monitor().measure(vector_policy(Straight(), action=2), REFERENCE_NFE)
    assert reading.spread_ratio == reading.best_of_k_ratio == reading.reconstruction_ratio == 1
    assert reading.diversity.spread == pytest.approx(1.0, abs=0.05)


def test_lost_mode_lowers_the_spread_and_raises_best_of_k() -> None:
    kept, lost = (monitor().measure(vector_policy(Straight(sign), action=2), nfe=2) for sign in (None, 1.0))
    assert kept.spread_ratio == pytest.approx(1, rel=1e-5) and kept.best_of_k_ratio == pytest.approx(1, rel=1e-3)
    assert lost.spread_ratio < 1e-5 and lost.best_of_k_ratio > 10
    assert lost.reconstruction_ratio == pytest.approx(1, abs=0.1)
