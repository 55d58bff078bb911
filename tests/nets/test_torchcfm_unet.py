"""TorchCFM's image checkpoints in our U-Net, against TorchCFM's own net."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.nets.torchcfm_unet import load_torchcfm_unet2d
from pipeline.nets.unet2d import Unet2D
from pipeline.training.fine_tune import fine_tune
from pipeline.utils.errors import UserError

pytest.importorskip("torchcfm")

from torchcfm.models.unet.unet import UNetModelWrapper

CIFAR10: dict[str, Any] = {  # as TorchCFM's examples/images/cifar10 has it
    "dim": (3, 32, 32), "num_res_blocks": 2, "num_channels": 128, "channel_mult": [1, 2, 2, 2], "num_heads": 4,
    "num_head_channels": 64, "attention_resolutions": "16", "dropout": 0.1,
}  # fmt: skip
PARAMETERS = 35_746_307
ROUNDING = 1e-10

SMALL: dict[str, Any] = {
    "shape": (3, 8, 8), "channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "head_channels": 16,
}  # fmt: skip
DEEP: dict[str, Any] = {
    "shape": (1, 16, 8), "channels": 32, "multipliers": (1, 1, 2), "blocks": 2, "attention": (8, 2),
    "head_channels": 32,
}  # fmt: skip


@torch.no_grad()
def theirs(seed: int = 0, **settings: Any) -> nn.Module:
    """Return TorchCFM's net with random weights in every layer."""
    torch.manual_seed(seed)
    net = UNetModelWrapper(**settings)
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net.eval()


def small(seed: int = 0, settings: dict[str, Any] = SMALL) -> nn.Module:
    return theirs(
        seed, dim=settings["shape"], num_channels=settings["channels"], channel_mult=settings["multipliers"],
        num_res_blocks=settings["blocks"], num_head_channels=settings["head_channels"], dropout=0.1,
        attention_resolutions=",".join(map(str, settings["attention"])),
    )  # fmt: skip


def saved(path: Path, average: nn.Module, prefix: str = "") -> Path:
    weights = {prefix + name: tensor for name, tensor in average.state_dict().items()}
    torch.save({"ema_model": weights, "net_model": {}, "sched": {}, "optim": {}, "step": 400_000}, path)
    return path


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.tensor([0.0, 0.7]), torch.randn(2, *shape, generator=generator)


@torch.no_grad()
def apart(ours: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the largest difference of the outputs in float64, where the order of summation does not show.

    Both libraries convert to float32 in places; the patch converts to float64 there.
    """
    t, x = (tensor.double() for tensor in inputs(shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        other.dtype = torch.float64  # TorchCFM's, of its blocks' input
        difference = ours.double()(t, x) - other.double()(t, x)
    assert difference.dtype == torch.float64
    return difference.abs().max().item()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("settings", [SMALL, DEEP], ids=["small", "deep"])
def test_loaded_unet_equals_torchcfms_net(tmp_path: Path, settings: dict[str, Any], prefix: str) -> None:
    net = small(settings=settings)
    ours = load_torchcfm_unet2d(saved(tmp_path / "net.pt", net, prefix), **settings)
    assert apart(ours, net, settings["shape"]) < ROUNDING
    # the head size matters, though no weight's shape depends on it
    other = load_torchcfm_unet2d(tmp_path / "net.pt", **settings | {"head_channels": settings["head_channels"] // 2})
    assert apart(other, net, settings["shape"]) > 1e-3


def test_loaded_cifar10_unet_equals_torchcfms_net(tmp_path: Path) -> None:
    net = theirs(**CIFAR10)
    ours = load_torchcfm_unet2d(saved(tmp_path / "net.pt", net))
    assert apart(ours, net, (3, 32, 32)) < ROUNDING
    assert sum(parameter.numel() for parameter in ours.parameters()) == PARAMETERS


def test_loaded_unet_can_be_fine_tuned(tmp_path: Path) -> None:
    field = load_torchcfm_unet2d(saved(tmp_path / "net.pt", small()), **SMALL)
    images = torch.tanh(torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    tuned = fine_tune(field, images, nfe=2, candidates=2, steps=2, batch_size=4, ema_decay=0.0, lora_rank=2)
    assert isinstance(tuned.net, Unet2D)
    assert tuned.net.state_dict().keys() == field.state_dict().keys()
    t, x = inputs((3, 8, 8))
    assert 0 < (tuned.net(t, x) - field(t, x)).abs().max() < 0.5


def test_unfitting_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", small())
    labelled = saved(tmp_path / "labelled.pt", theirs(
        dim=(3, 8, 8), num_channels=32, channel_mult=[1, 2], num_res_blocks=1, num_head_channels=16,
        attention_resolutions="4", class_cond=True, num_classes=4,
    ))  # fmt: skip
    other = saved(tmp_path / "other.pt", nn.Linear(2, 2))
    numbers = tmp_path / "numbers.pt"
    torch.save({"ema_model": {"step": 1}}, numbers)
    architecture = "its ema_model is of another architecture than the one given"
    cases = [
        (tmp_path / "none.pt", {}, "no such checkpoint"),
        (path, {"which": "ema"}, "it has no entry 'ema'"),
        (path, {"channels": 64}, architecture),
        (path, {"blocks": 2}, architecture),
        (path, {"attention": ()}, architecture),
        (path, {"channels": 96, "head_channels": 96}, architecture),
        (path, {"shape": (1, 8, 8)}, architecture),
        (labelled, {}, f"{architecture}.*label_emb"),
        (other, {}, architecture),
        (numbers, {}, "its entry 'ema_model' holds other things than weights"),
    ]
    for file, settings, complaint in cases:
        with pytest.raises(UserError, match=complaint) as refusal:
            load_torchcfm_unet2d(file, **SMALL | settings)
        assert str(refusal.value).startswith(f"{file}: ") and "\n" not in str(refusal.value)
