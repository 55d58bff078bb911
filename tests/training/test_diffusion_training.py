"""Training of diffusion models: the loss is DDPM's, and tiny nets learn their distributions."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.action_diffusion import ddim, ddpm
from pipeline.flow.action_diffusion import make_scheduler as action_scheduler
from pipeline.flow.diffusion import ancestral, make_scheduler
from pipeline.flow.path import variance_preserving
from pipeline.nets.embedding import TimeEmbedding
from pipeline.training.diffusion import NoisePrediction
from pipeline.training.loop import Batches, train
from pipeline.utils.seeding import Generators
from tests.training.helpers import optimization

MEAN, DEVIATION = 0.5, 0.8
LEARNING = partial(optimization, batch_size=512, lr=1e-2, warmup=50, ema_decay=0.99)


class TinyImageNet(nn.Module):
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


class TinyActionNet(nn.Module):
    """ε_θ of chunks of two actions of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.time = TimeEmbedding(32)
        self.layers = nn.Sequential(nn.Linear(35, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        return self.layers(torch.cat([x.flatten(1), condition, self.time(t)], dim=1)).view_as(x)


@pytest.mark.parametrize("levels", [1000, 100, 10])
def test_loss_is_that_of_the_drawn_noise_and_levels(levels: int) -> None:
    """1000 levels are the default scheduler's, for images."""
    torch.manual_seed(0)
    net, data, condition = TinyActionNet(), torch.randn(16, 2, 1), torch.randn(16, 1)
    scheduler = None if levels == 1000 else action_scheduler(levels)
    loss = NoisePrediction(net, Generators(5), scheduler)(condition, data)

    streams = Generators(5)
    x0 = torch.randn(16, 2, 1, generator=streams["noise"])
    k = torch.randint(levels, (16,), generator=streams["time"])
    kept = (scheduler or make_scheduler()).alphas_cumprod[k].view(16, 1, 1)
    x = kept.sqrt() * data + (1 - kept).sqrt() * x0
    expected = (net(1 - (k + 1) / levels, x, condition) - x0).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_image_diffusion_learns_a_gaussian() -> None:
    torch.manual_seed(0)
    data = MEAN + DEVIATION * torch.randn(4096, 1, 1, 1)
    objective = NoisePrediction(TinyImageNet(), Generators(1))
    batches = Batches(torch.zeros(len(data), 0), data)
    net = train(objective, batches, LEARNING(steps=1200), Generators(2)).cpu()
    count = 4000
    noise = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    made = ancestral(net, noise, torch.zeros(count, 0), 200, torch.Generator().manual_seed(4), clip=False)
    assert made.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert made.std().item() == pytest.approx(DEVIATION, rel=0.06)


def test_action_diffusion_learns_two_modes_that_depend_on_the_condition() -> None:
    # both numbers of a chunk are c ± 0.4, of the same sign, and noise of deviation 0.05
    torch.manual_seed(0)
    condition = torch.rand(4096, 1) - 0.5
    sign = torch.randint(2, (4096, 1, 1)) * 2.0 - 1
    data = condition[:, None] + 0.4 * sign + 0.05 * torch.randn(4096, 2, 1)
    objective = NoisePrediction(TinyActionNet(), Generators(1), action_scheduler())
    net = train(objective, Batches(condition, data), LEARNING(steps=1500), Generators(2)).cpu()

    generator = torch.Generator().manual_seed(3)
    asked = torch.full((1000, 1), 0.2)
    noises = torch.randn(1000, 16, 2, 1, generator=generator)
    for made in (ddpm(net, noises, asked), ddim(net, noises[:, 0], asked, 16)):
        offset = made.detach()[..., 0] - 0.2
        assert (offset > 0).float().mean().item() == pytest.approx(0.5, abs=0.12)
        assert (offset.sign().diff(dim=1) == 0).float().mean() > 0.97
        assert offset.abs().mean().item() == pytest.approx(0.4, abs=0.03)
        assert offset.abs().std().item() < 0.12
