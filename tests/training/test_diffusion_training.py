"""Training of the diffusion baseline: its loss is the one written down, and its net learns a distribution."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.diffusion import ancestral, make_scheduler
from pipeline.flow.path import variance_preserving
from pipeline.settings.schema import Optimization
from pipeline.training.diffusion import NoisePrediction
from pipeline.training.loop import Batches, train
from pipeline.utils.seeding import Generators

MEAN, DEVIATION = 0.5, 0.8


class Tiny(nn.Module):
    """ε_θ of images of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.path = variance_preserving()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        assert condition.shape == (len(x), 0)
        t = t[:, None]
        features = torch.cat([x.flatten(1), self.path.alpha(t), self.path.sigma(t)], dim=1)
        return self.layers(features).view_as(x)


def test_the_loss_of_a_call_is_that_of_its_drawn_noise_and_levels() -> None:
    torch.manual_seed(0)
    net, data, condition = Tiny(), torch.randn(16, 1, 1, 1), torch.zeros(16, 0)
    loss = NoisePrediction(net, Generators(5))(condition, data)

    streams = Generators(5)
    x0 = torch.randn(16, 1, 1, 1, generator=streams["noise"])
    k = torch.randint(1000, (16,), generator=streams["time"])
    kept = make_scheduler().alphas_cumprod[k].view(16, 1, 1, 1)
    expected = (net(1 - (k + 1) / 1000, kept.sqrt() * data + (1 - kept).sqrt() * x0, condition) - x0).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_tiny_net_learns_a_gaussian() -> None:
    torch.manual_seed(0)
    data = MEAN + DEVIATION * torch.randn(4096, 1, 1, 1)
    optimization = Optimization(
        steps=1200,
        batch_size=512,
        lr=1e-2,
        weight_decay=0.0,
        warmup=50,
        max_grad_norm=1.0,
        ema_decay=0.99,
        precision="fp32",
    )
    net = train(
        NoisePrediction(Tiny(), Generators(1)), Batches(torch.zeros(len(data), 0), data), optimization, Generators(2)
    ).cpu()
    count = 4000
    noise = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    made = ancestral(net, noise, torch.zeros(count, 0), 200, torch.Generator().manual_seed(4), clip=False)
    assert made.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert made.std().item() == pytest.approx(DEVIATION, rel=0.06)
