"""Velocity fields: shapes, dependence on inputs, gradients, and training of the paper-scale nets."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.action_diffusion import make_scheduler
from pipeline.flow.coupling import make_coupling
from pipeline.flow.path import PATHS
from pipeline.nets import unet1d
from pipeline.nets.embedding import TimeEmbedding
from pipeline.nets.registry import build_encoder, build_net
from pipeline.nets.residual import build_residual
from pipeline.nets.unet1d import ConditionalUnet1D
from pipeline.nets.vision import ImageConditioned, pack
from pipeline.settings import schema
from pipeline.settings.schema import MlpSettings, NetSettings, ResidualRecipe, Unet1dSettings
from pipeline.training.diffusion import NoisePrediction
from pipeline.training.loop import Batches, Objective, train
from pipeline.training.mle import Reconstruction
from pipeline.training.pretrain import FlowMatching
from pipeline.training.residual import residual_training
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import Generators

MLP = MlpSettings(kind="mlp", width=16, depth=2, expansion=2, time_features=8)
UNET = Unet1dSettings(kind="unet1d", channels=[16, 32], kernel=3, groups=4, time_features=8)
PAPER_UNET = {"channels": (256, 512, 1024), "kernel": 5, "groups": 8, "time_features": 256}


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(batch, generator=generator),
        torch.randn(batch, 8, 2, generator=generator),
        torch.randn(batch, 5, generator=generator),
    )


@pytest.mark.parametrize("settings", [MLP, UNET], ids=["mlp", "unet1d"])
@torch.no_grad()
def test_a_field_is_shaped_as_the_state_and_depends_on_every_input(settings: NetSettings) -> None:
    torch.manual_seed(0)
    net = build_net(settings, horizon=8, action_dim=2, condition_dim=5).eval()
    t, x, c = inputs()
    velocity = net(t, x, c)
    assert velocity.shape == x.shape
    for other in ((t + 0.01, x, c), (t, x + 0.1, c), (t, x, c + 0.1)):
        assert (net(*other) - velocity).flatten(1).abs().amax(1).min() > 1e-5


@pytest.mark.parametrize("settings", [MLP, UNET], ids=["mlp", "unet1d"])
def test_rows_of_a_batch_do_not_mix_and_every_weight_learns(settings: NetSettings) -> None:
    torch.manual_seed(0)
    net = build_net(settings, horizon=8, action_dim=2, condition_dim=5)
    t, x, c = inputs()
    x.requires_grad_()
    velocity = net(t, x, c)
    (gradient,) = torch.autograd.grad(velocity[0].sum(), x, retain_graph=True)
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0
    velocity.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_time_features_distinguish_close_times() -> None:
    embed = TimeEmbedding(64)
    features = embed(torch.tensor([0.0, 0.001, 0.5, 1.0]))
    assert features.shape == (4, 64)
    assert torch.cdist(features, features)[~torch.eye(4, dtype=torch.bool)].min() > 0.5
    assert torch.allclose(features[0], torch.cat([torch.ones(32), torch.zeros(32)]))


def test_a_horizon_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(UserError, match=r"^horizon: given 10, allowed: multiples of 4 for a unet1d of 3 levels$"):
        ConditionalUnet1D(10, 2, 5, **PAPER_UNET)


PAPER = schema.load(ROOT / "params.yaml").paper
TRAINED = [("pusht", mode) for mode in ("flow_matching", "diffusion", "mle", *PAPER.residual)]
TRAINED += [("pusht_image", "flow_matching"), ("pusht_image", "diffusion"), ("kitchen", "mle")]
TRAINED += [("transport", mode) for mode in ("mle", *PAPER.residual)]
"""Tasks and modes: each mode once, and nets of other sizes or trained parts."""


@pytest.mark.parametrize(("task", "mode"), TRAINED)
def test_every_paper_scale_net_builds_and_takes_two_steps(task: str, mode: str) -> None:
    settings = PAPER.task(task)
    spec, data = settings.load_task(), settings.data
    torch.manual_seed(0)
    encoder = build_encoder(data.vision) if data.vision else None
    numbers = spec.observations[data.observation].dim
    condition_dim = data.n_obs_steps * (numbers + (encoder.features if encoder else 0))
    net = build_net(settings.net, data.horizon, spec.action_dim, condition_dim)
    condition = torch.randn(4, condition_dim)
    if encoder and mode in ("flow_matching", "diffusion"):  # both train the encoder too
        net = ImageConditioned(encoder, net, horizon=data.n_obs_steps, n_numbers=numbers)
        images = torch.randint(256, (4, data.n_obs_steps, encoder.crop, encoder.crop, 3), dtype=torch.uint8)
        condition = pack(images, torch.randn(4, data.n_obs_steps, numbers))
    generators = Generators(0)
    path = PATHS[settings.pretrain.path](settings.pretrain.sigma)
    recipe = settings.finetune["nfe1"]
    if mode in PAPER.residual:
        take_two_residual_steps(settings.residual[mode], net, data.horizon, spec.action_dim, condition_dim)
        return
    objectives: dict[str, Callable[[nn.Module], Objective]] = {
        "flow_matching": lambda net: FlowMatching(net, path, make_coupling("minibatch_ot", 1), generators),
        "diffusion": lambda net: NoisePrediction(net, generators, make_scheduler()),
        "mle": lambda net: Reconstruction(net, make_coupling(recipe.coupling, 2), 2, generators),
    }
    batches = Batches(condition, torch.randn(4, data.horizon, spec.action_dim))
    before = [p.detach().clone() for p in net.parameters()]
    two_steps = settings.pretrain.model_copy(update={"steps": 2, "batch_size": 2, "warmup": 1})
    trained = train(objectives[mode](net), batches, two_steps, generators)
    assert all(torch.isfinite(p).all() for p in trained.parameters())
    assert all((p.cpu() != old).any() for p, old in zip(net.parameters(), before, strict=True))


def take_two_residual_steps(
    recipe: ResidualRecipe, base: nn.Module, horizon: int, action_dim: int, condition_dim: int
) -> None:
    residual = build_residual(recipe, horizon, action_dim, condition_dim)
    batches = Batches(torch.randn(2, condition_dim), torch.randn(2, horizon, action_dim))
    few = {"steps": 2, "batch_size": 2, "warmup": 1, "candidates": 1, "precomputed_pairs": 0, "precision": "fp32"}
    few |= {"coupling": "independent"}
    few_steps = recipe.model_copy(update=few)
    before = {name: p.detach().clone() for name, p in residual.named_parameters()}
    generators = Generators(0)
    objective, batches = residual_training(residual, base, few_steps, recipe.residual_steps + 1, generators, batches)
    trained = train(objective, batches, few_steps, generators)
    assert all(torch.isfinite(p).all() for p in trained.parameters())
    changed = [name for name, p in residual.named_parameters() if (p.cpu() != before[name]).any()]
    assert any("source" in name or "net" in name for name in changed) and len(changed) >= len(before) / 2


@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (3, 2), (1, 1)])
def test_a_convolution_as_a_product_of_matrices_is_the_convolution(
    kernel: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    conv = unet1d._Conv(6, 4, kernel, stride=stride, padding=kernel // 2).double()
    norm = unet1d._Norm(2, 4).double()
    x = torch.randn(3, 6, 16, dtype=torch.float64, requires_grad=True)

    def made() -> list[Tensor]:
        y = norm(conv(x))
        return [y, *torch.autograd.grad(y.square().sum() + y[0, 0, 0], [x, *conv.parameters(), *norm.parameters()])]

    expected = made()
    monkeypatch.setattr(unet1d, "_by_products", lambda _: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.float64)
    torch.testing.assert_close(made(), expected, rtol=1e-10, atol=1e-12)


def test_a_unet1d_in_bfloat16_differs_by_rounding() -> None:
    torch.manual_seed(0)
    net = ConditionalUnet1D(16, 2, 20, channels=[16, 32, 64], kernel=5, groups=8, time_features=16)
    t, x, condition = torch.rand(8), torch.randn(8, 16, 2), torch.randn(8, 20)

    def gradient(enabled: bool) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            made = net(t, x, condition)
            loss = made.float().square().mean()
        return made.float(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    for rounded, exact in zip(gradient(True), gradient(False), strict=True):
        assert (rounded - exact).norm() < 0.03 * exact.norm()
