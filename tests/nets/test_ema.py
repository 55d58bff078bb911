"""The moving average of weights against its closed form."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from pipeline.nets.ema import averaged


def averages_of(decay: float, values: Sequence[float]) -> list[float]:
    """Return the average after each value of a scalar net."""
    net = nn.Linear(1, 1, bias=False).double()
    average = averaged(net, decay)
    seen = []
    for value in values:
        nn.init.constant_(net.weight, value)
        average.update_parameters(net)
        seen.append(average.module.weight.item())
    return seen


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_average_approaches_a_step_by_powers_of_the_decay(decay: float) -> None:
    before, after = 1000, 40
    averages = averages_of(decay, [0.0] * before + [1.0] * after)
    assert averages[:before] == [0.0] * before
    assert averages[before:] == pytest.approx([1 - decay**k for k in range(1, after + 1)], rel=1e-12)


def test_initial_weights_fade_within_100_updates() -> None:
    assert averages_of(0.9999, [1.0] + [0.0] * 100)[-1] < 1e-6


def test_zero_decay_gives_the_net_itself() -> None:
    assert averages_of(0.0, [3.0, -1.0, 2.0]) == [3.0, -1.0, 2.0]


def test_average_shares_no_memory_with_the_net() -> None:
    net = nn.Linear(2, 2)
    average = averaged(net, 0.9)
    before = average.module.weight.clone()
    with torch.no_grad():
        net.weight.add_(1)
    assert torch.equal(average.module.weight, before)
