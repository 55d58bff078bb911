"""TorchCFM's own models, called and fine-tuned as velocity fields, and its checkpoints."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.nets.torchcfm import TorchCFMField, load_torchcfm
from pipeline.training.fine_tune import fine_tune, sample
from pipeline.utils.errors import UserError

pytest.importorskip("torchcfm")

from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
from torchcfm.models import MLP
from torchcfm.models.unet import UNetModel

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.0, 0.3, 1.0])


def unet(seed: int = 0, **settings: object) -> nn.Module:
    """Return a tiny U-Net with random weights in its zero-initialised layers, so that time and labels matter."""
    torch.manual_seed(seed)
    net = UNetModel(
        dim=(3, 8, 8), num_channels=32, num_res_blocks=1, channel_mult=[1, 2], attention_resolutions="4", dropout=0.1,
        **settings,
    )  # fmt: skip
    for parameter in net.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return net.eval()


def test_an_unconditional_unet_is_called_with_time_and_state() -> None:
    net = unet()
    with torch.no_grad():
        assert torch.equal(TorchCFMField(net)(T, X, None), net(T, X))
        assert torch.equal(TorchCFMField(net)(torch.tensor(0.3), X), net(T[1], X))


def test_a_class_conditional_unet_gets_its_labels() -> None:
    net, labels = unet(class_cond=True, num_classes=4), torch.tensor([0, 3, 3])
    with torch.no_grad():
        assert torch.equal(TorchCFMField(net)(T, X, labels), net(T, X, labels))
        assert not torch.equal(TorchCFMField(net)(T, X, labels), net(T, X, labels.flip(0)))


def test_the_mlp_gets_the_time_as_last_component() -> None:
    net, x = MLP(2, time_varying=True), torch.randn(3, 2)
    with torch.no_grad():
        assert torch.equal(TorchCFMField(net)(T, x, None), net(torch.cat([x, T[:, None]], 1)))
        assert torch.equal(TorchCFMField(net)(T[1], x), net(torch.cat([x, torch.full((3, 1), 0.3)], 1)))
    with pytest.raises(ValueError, match="allowed: None"):
        TorchCFMField(net)(T, x, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="allowed: time_varying=True"):
        TorchCFMField(MLP(2))


@pytest.mark.parametrize("labels", [None, torch.arange(12) % 4])
def test_a_unet_is_fine_tuned_on_images(labels: Tensor | None) -> None:
    net = unet() if labels is None else unet(class_cond=True, num_classes=4)
    images = torch.tanh(torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    data = images if labels is None else (images, labels)
    losses: list[float] = []
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tuned = fine_tune(
        TorchCFMField(net), data, nfe=2, candidates=2, steps=20, batch_size=8, lr=1e-3, ema_decay=0.0,
        log=lambda metrics, _step: losses.append(metrics["loss"]),
    )  # fmt: skip
    assert len(losses) == 1 and math.isfinite(losses[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert tuned.net.net.state_dict().keys() == before.keys()

    noise = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    scale, tuned_scale = (sample(f, noise, labels, nfe=2).square().mean() for f in (TorchCFMField(net), tuned.net))
    data_scale = images.square().mean()
    assert (tuned_scale - data_scale).abs() < 0.7 * (scale - data_scale).abs()


def eight_gaussians(rows: int, seed: int) -> Tensor:
    """Points about eight centres on a circle of radius 2, with deviation 0.1."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (rows,), generator=generator) * (math.pi / 4)
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(rows, 2, generator=generator)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E‖A − B‖ − E‖A − A'‖ − E‖B − B'‖ (Székely & Rizzo 2013): 0 for equal laws only."""
    within = sum(torch.cdist(s, s).sum() / (len(s) * (len(s) - 1)) for s in (a, b))
    return float(2 * torch.cdist(a, b).mean() - within)


@pytest.fixture(scope="module")
def mlp() -> nn.Module:
    """Train an MLP by TorchCFM's own flow matcher."""
    torch.manual_seed(0)
    net, matcher, data = MLP(2, w=64, time_varying=True), ConditionalFlowMatcher(sigma=0.0), eight_gaussians(4000, 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(300):
        x1 = data[torch.randint(len(data), (256,))]
        t, x, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        loss = (net(torch.cat([x, t[:, None]], 1)) - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("nfe", [1, 2])
def test_fine_tuning_moves_a_torchcfm_model_to_the_data(mlp: nn.Module, nfe: int) -> None:
    field = TorchCFMField(mlp)
    tuned = fine_tune(
        field, eight_gaussians(4000, 0), nfe=nfe, coupling="nearest", steps=300, lr=3e-3,
        held_out=eight_gaussians(200, 1), readings=1,
    )  # fmt: skip
    noise, data = torch.randn(2000, 2, generator=torch.Generator().manual_seed(3)), eight_gaussians(2000, 2)
    before, after = (energy_distance(sample(net, noise, nfe=nfe), data) for net in (field, tuned.net))
    assert after < 0.25 * before
    assert tuned.history[300].spread_ratio > 0.8 > tuned.history[0].spread_ratio


def checkpoint(path: Path, net: nn.Module, average: nn.Module, prefix: str = "") -> Path:
    """Write a checkpoint as TorchCFM's training scripts do."""
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 5) / 5)
    models = {"net_model": net, "ema_model": average}
    weights = {name: {prefix + k: v for k, v in m.state_dict().items()} for name, m in models.items()}
    torch.save(weights | {"sched": schedule.state_dict(), "optim": optimizer.state_dict(), "step": 400_000}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_torchcfm_checkpoint_loads_with_any_prefix(tmp_path: Path, prefix: str) -> None:
    net, average = unet(1), unet(2)
    path = checkpoint(tmp_path / "otcfm.pt", net, average, prefix)
    with torch.no_grad():
        assert torch.equal(load_torchcfm(path, unet(3))(T, X), average(T, X))
        assert torch.equal(load_torchcfm(path, unet(3), which="net_model")(T, X), net(T, X))


def test_loaded_model_samples_without_dropout(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "otcfm.pt", unet(1), unet(2))
    field = load_torchcfm(path, unet(3).train())
    assert not any(part.training for part in field.modules())
    assert torch.equal(sample(field, X, nfe=2), sample(field, X, nfe=2))
    field.train()
    assert torch.equal(sample(field, X, nfe=2), sample(field, X, nfe=2)) and field.training


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "otcfm.pt", unet(1), unet(2))
    broken = tmp_path / "broken.pt"
    broken.write_bytes(path.read_bytes()[:1000])
    code = tmp_path / "code.pt"
    torch.save({"ema_model": Path("/")}, code)  # anything but tensors and plain values might run code
    bare = tmp_path / "bare.pt"
    torch.save(unet(1).state_dict(), bare)
    cases = {
        path: (MLP(2, time_varying=True), "its ema_model does not fit the given net"),
        bare: (unet(), "it has no entry 'ema_model'"),
        broken: (unet(), "no readable PyTorch checkpoint"),
        code: (unet(), "no readable PyTorch checkpoint"),
        tmp_path / "none.pt": (unet(), "no such checkpoint"),
    }
    for file, (net, complaint) in cases.items():
        with pytest.raises(UserError, match=complaint) as refusal:
            load_torchcfm(file, net)
        assert str(refusal.value).startswith(f"{file}: ") and "\n" not in str(refusal.value)
