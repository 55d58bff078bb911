"""The moving average of weights against its closed form."""

import pytest
import torch
from torch import nn

from pipeline.nets.ema import averaged


def weights_seen(decay: float, count: int) -> tuple[list[float], list[float]]:
    """A scalar net's values and the average after each of them."""
    net = nn.Linear(1, 1, bias=False).double()
    average = averaged(net, decay)
    values, averages = [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        with torch.no_grad():
            net.weight.copy_(torch.randn((1, 1), generator=generator))
        average.update_parameters(net)
        values.append(net.weight.item())
        averages.append(average.module.weight.item())
    return values, averages


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_follows_its_recursion(decay: float) -> None:
    values, averages = weights_seen(decay, 40)
    expected = values[0]
    assert averages[0] == expected
    for n in range(1, 40):
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * values[n]
        assert averages[n] == pytest.approx(expected, rel=1e-12)


def test_without_decay_it_is_the_net_itself() -> None:
    values, averages = weights_seen(0.0, 5)
    assert averages == values


def test_the_average_shares_nothing_with_the_net() -> None:
    net = nn.Linear(2, 2)
    average = averaged(net, 0.9)
    before = average.module.weight.clone()
    with torch.no_grad():
        net.weight.add_(1)
    assert torch.equal(average.module.weight, before)
