"""Training of the diffusion of actions: its loss is the one written down, and its net learns a distribution."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.action_diffusion import ddim, ddpm, make_scheduler
from pipeline.nets.embedding import TimeEmbedding
from pipeline.settings.schema import Optimization
from pipeline.training.diffusion import NoisePrediction
from pipeline.training.loop import Batches, train
from pipeline.utils.seeding import Generators


class Tiny(nn.Module):
    """ε_θ of chunks of two actions of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.time = TimeEmbedding(32)
        self.layers = nn.Sequential(nn.Linear(35, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        return self.layers(torch.cat([x.flatten(1), condition, self.time(t)], dim=1)).view_as(x)


@pytest.mark.parametrize("levels", [100, 10])
def test_the_loss_of_a_call_is_that_of_its_drawn_noise_and_levels(levels: int) -> None:
    torch.manual_seed(0)
    net, data, condition, scheduler = Tiny(), torch.randn(16, 2, 1), torch.randn(16, 1), make_scheduler(levels)
    loss = NoisePrediction(net, Generators(5), scheduler)(condition, data)

    streams = Generators(5)
    x0 = torch.randn(16, 2, 1, generator=streams["noise"])
    k = torch.randint(levels, (16,), generator=streams["time"])
    kept = scheduler.alphas_cumprod[k].view(16, 1, 1)
    x = kept.sqrt() * data + (1 - kept).sqrt() * x0
    expected = (net(1 - (k + 1) / levels, x, condition) - x0).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_tiny_net_learns_two_modes_that_the_condition_moves() -> None:
    # both numbers of a chunk are c ± 0.4, of the same sign, and noise of deviation 0.05
    torch.manual_seed(0)
    condition = torch.rand(4096, 1) - 0.5
    sign = torch.randint(2, (4096, 1, 1)) * 2.0 - 1
    data = condition[:, None] + 0.4 * sign + 0.05 * torch.randn(4096, 2, 1)
    optimization = Optimization(
        steps=1500,
        batch_size=512,
        lr=1e-2,
        weight_decay=0.0,
        warmup=50,
        max_grad_norm=1.0,
        ema_decay=0.99,
        precision="fp32",
    )
    objective = NoisePrediction(Tiny(), Generators(1), make_scheduler())
    net = train(objective, Batches(condition, data), optimization, Generators(2)).cpu()

    generator = torch.Generator().manual_seed(3)
    asked = torch.full((1000, 1), 0.2)
    noises = torch.randn(1000, 16, 2, 1, generator=generator)
    for made in (ddpm(net, noises, asked), ddim(net, noises[:, 0], asked, 16)):
        offset = made.detach()[..., 0] - 0.2
        assert (offset > 0).float().mean().item() == pytest.approx(0.5, abs=0.12)
        assert (offset.sign().diff(dim=1) == 0).float().mean() > 0.97
        assert offset.abs().mean().item() == pytest.approx(0.4, abs=0.03)
        assert offset.abs().std().item() < 0.12
