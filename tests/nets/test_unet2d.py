"""The image U-Net: zero before training, dependence on inputs, and refused sizes."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from pipeline.evaluation.residual_policy import solve_residual
from pipeline.nets.residual import PlainResidual
from pipeline.nets.unet2d import PatchedUnet2D, Unet2D
from pipeline.utils.errors import UserError

SMALL: dict[str, Any] = {
    "channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "head_channels": 4, "groups": 4,
    "dropout": 0.1, "time_scale": 1000.0,
}  # fmt: skip
SHAPE = (3, 8, 8)


def unet(shape: tuple[int, int, int] = SHAPE, **settings: Any) -> Unet2D:
    torch.manual_seed(0)
    return Unet2D(shape, **SMALL | settings)


@torch.no_grad()
def awake(net: Unet2D) -> Unet2D:
    """Return ``net`` with random weights, in evaluation mode."""
    for parameter in net.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    return net.eval()


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *SHAPE, generator=generator)
    return torch.rand(batch, generator=generator), x, torch.empty(batch, 0)


@torch.no_grad()
def test_an_untrained_net_is_zero_and_its_middle_the_identity() -> None:
    net = unet()
    t, x, c = inputs()
    assert torch.equal(net(t, x, c), torch.zeros_like(x))
    h = torch.randn(3, 16, 4, 4)
    assert torch.equal(net.net.mid_block(h, torch.randn(3, 32)), h)


@torch.no_grad()
def test_untrained_unet2d_residual_leaves_the_sample_unchanged() -> None:
    _, anchor, c = inputs()
    residual = PlainResidual(unet())
    assert torch.equal(solve_residual(residual, anchor, c, anchor, [1.0, 1.1, 1.2]), anchor)
    awake(residual.net)
    assert not torch.equal(solve_residual(residual, anchor, c, anchor, [1.0, 1.1, 1.2]), anchor)


@torch.no_grad()
def test_the_velocity_is_shaped_as_the_image_and_depends_on_every_input() -> None:
    net = awake(unet())
    t, x, c = inputs()
    velocity = net(t, x, c)
    assert velocity.shape == x.shape
    assert torch.equal(net(t, x), velocity)
    for other in ((t + 0.01, x, c), (t, x + 0.1, c)):
        assert (net(*other) - velocity).flatten(1).abs().amax(1).min() > 1e-4
    with pytest.raises(ValueError, match="allowed: "):
        net(t, x, torch.zeros(3, 2))


def test_rows_of_a_batch_do_not_mix_and_every_weight_learns() -> None:
    net = awake(unet())
    t, x, c = inputs()
    x.requires_grad_()
    velocity = net(t, x, c)
    (gradient,) = torch.autograd.grad(velocity[0].sum(), x, retain_graph=True)
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().max() == 0
    velocity.square().sum().backward()
    assert [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@torch.no_grad()
def test_time_is_scaled_before_its_features() -> None:
    net = awake(unet())
    raw = awake(unet(time_scale=1.0))
    t, x, c = inputs()
    assert torch.equal(net(t, x, c), raw(1000 * t, x, c))


def test_middle_block_has_attention_only_if_a_level_has() -> None:
    def attentions(net: nn.Module) -> int:
        return sum(isinstance(module, Attention) for module in net.modules())

    assert attentions(unet(attention=(), head_channels=7)) == 0
    assert attentions(unet()) == 1 + 1 + 2  # down, middle, up
    assert attentions(unet(attention=(8,))) == 1 + 1 + 2


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"multipliers": (1, 1, 1, 1, 1)}, "multipliers: given 5 of them, allowed: at most 4, since images of 8 x 8"),
        ({"shape": (1, 8, 6), "multipliers": (1, 1, 1)}, "multipliers: given 3 of them, allowed: at most 2"),
        ({"multipliers": (2, 4)}, r"multipliers: given \[2, 4\], allowed: whole numbers from 1, the first of them 1"),
        ({"multipliers": ()}, r"multipliers: given \[\], allowed"),
        ({"groups": 3}, "groups: given 3, allowed: divisors of the levels' channels 8, 16$"),
        ({"attention": (4, 5)}, "attention: given 5, allowed: the widths of the levels 8, 4$"),
        ({"head_channels": 3}, "head_channels: given 3, allowed: divisors of the channels 16 of"),
        ({"head_channels": 16, "attention": (8,)}, "head_channels: given 16, allowed: divisors of the channels 8, 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=f"^{complaint}") as refusal:
        unet(**settings)
    assert "\n" not in str(refusal.value)


def test_bfloat16_autocast_is_float32_to_its_precision_and_weights_stay_float32() -> None:
    net = awake(unet())
    t, x, c = inputs()
    exact = net(t, x, c)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(t, x, c)
    assert rounded.dtype == torch.bfloat16
    assert 0 < (rounded - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()
    rounded.float().square().sum().backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in net.parameters())


@torch.no_grad()
def test_unet2d_compiles_as_one_graph() -> None:
    net = awake(unet())
    compiled = torch.compile(deepcopy(net), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs()), net(*inputs()))


@torch.no_grad()
def test_a_patched_net_sees_squares_of_pixels_as_channels() -> None:
    net = PatchedUnet2D(SHAPE, patch=2, **SMALL | {"attention": (2,)})
    t, x, _ = inputs()
    assert torch.equal(net(t, x), torch.zeros_like(x))
    net.net.get_submodule("conv_out").bias.copy_(torch.arange(12.0))
    assert torch.equal(net(t, x)[0, :, :2, :2].flatten(), torch.arange(12.0))
    assert torch.equal(net(t, x)[:, :, :2, :2], net(t, x)[:, :, 6:, 4:6])
    with pytest.raises(UserError, match=r"^patch: given 3, allowed: divisors of the images' sides 8 and 8$"):
        PatchedUnet2D(SHAPE, patch=3, **SMALL)
