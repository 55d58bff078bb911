"""The image U-Net of Dhariwal & Nichol (2021), in the form that TorchCFM (Tong et al. 2024) uses for flow matching."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from pipeline.utils.errors import UserError


class Unet2D(nn.Module):
    """v(t, x) for images, around diffusers' ``UNet2DModel``.

    It computes the same as TorchCFM's ``UNetModelWrapper`` (a test compares the two); for CIFAR-10 it has 35.75 M
    parameters. The time is added inside the residual blocks. Each level has ``blocks`` of them on the way down and one
    more on the way up. Strided convolutions join the levels, and every block has a skip connection. Self-attention
    follows each block at the given resolutions and stands between the two blocks in the middle. As in TorchCFM, the
    last layer of each residual branch and of the net is zero at first: an untrained net is the zero field.

    Tensors stay contiguous (NCHW). On CUDA, group norms up to torch 2.13 convert their output back to that format
    (pytorch/pytorch#191945), so channels_last would only add conversions. On a CPU channels_last gained nothing.

    Args:
        shape: (C, H, W) of one image; H and W are halved between levels.
        channels: of the first level; the time embedding has four times as many.
        multipliers: channels of each level over those of the first; the first entry is 1.
        blocks: residual blocks at each level.
        attention: widths in pixels of the levels that have attention. If there are any, the middle has it too.
        head_channels: of each attention head; not used without attention.
        groups: of the group normalisation; 32 in ADM. Use fewer than ``channels``: the time shifts each channel, and a
            group of a single channel removes that shift.
        dropout: probability inside the residual blocks.
        time_scale: factor on t before its sinusoidal features. These are made for the step counts of diffusion models,
            up to 1000, so 1000 suits t ∈ [0, 1]. TorchCFM's models are trained with 1.

    Raises:
        UserError: the sizes do not fit together.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        head_channels: int,
        groups: int,
        dropout: float,
        time_scale: float,
    ) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel  # here: it takes seconds

        image_channels, height, width = shape
        _check_levels(height, width, multipliers)
        widths = [channels * multiplier for multiplier in multipliers]
        sides = [width >> level for level in range(len(widths))]
        _check_groups(widths, groups)
        _check_attention(widths, sides, attention, head_channels)
        self.time_scale = time_scale
        self.net = UNet2DModel(
            sample_size=(height, width),
            in_channels=image_channels,
            out_channels=image_channels,
            block_out_channels=tuple(widths),
            layers_per_block=blocks,
            down_block_types=tuple("AttnDownBlock2D" if side in attention else "DownBlock2D" for side in sides),
            up_block_types=tuple("AttnUpBlock2D" if side in attention else "UpBlock2D" for side in reversed(sides)),
            add_attention=bool(attention),
            attention_head_dim=head_channels,
            norm_num_groups=groups,
            dropout=dropout,
        )
        _start_at_zero(self.net)

    def forward(self, t: Tensor, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """t: (B,), x: (B, C, H, W), condition: (B, 0) or None → velocity, shaped as x.

        Raises:
            ValueError: a condition is given.
        """
        if condition is not None and condition.shape[1:] != (0,):
            raise ValueError(f"condition: given {tuple(condition.shape)}, allowed: (B, 0), since Unet2D takes none")
        (velocity,) = self.net(x, self.time_scale * t, return_dict=False)
        return velocity


class PatchedUnet2D(Unet2D):
    """``Unet2D`` on folded images: ``patch`` × ``patch`` pixels become the channels of one pixel.

    Half the side costs a quarter of the products at equal channels, and CPUs are faster at many channels than at many
    pixels. The velocity is unfolded at the end (Hoogeboom et al. 2023, simple diffusion).

    Args:
        shape: (C, H, W) of one image. patch: a divisor of H and W.
        options: of ``Unet2D``, for images of H / patch × W / patch.

    Raises:
        UserError: the sizes do not fit together.
    """

    def __init__(self, shape: tuple[int, int, int], *, patch: int, **options: Any) -> None:
        channels, height, width = shape
        if height % patch or width % patch:
            raise UserError(f"patch: given {patch}, allowed: divisors of the images' sides {height} and {width}")
        super().__init__((channels * patch**2, height // patch, width // patch), **options)
        self.patch = patch

    def forward(self, t: Tensor, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Compute the velocity as ``Unet2D.forward`` does."""
        return pixel_shuffle(super().forward(t, pixel_unshuffle(x, self.patch), condition), self.patch)


def _check_levels(height: int, width: int, multipliers: Sequence[int]) -> None:
    if not multipliers or multipliers[0] != 1 or min(multipliers) < 1:
        raise UserError(f"multipliers: given {list(multipliers)}, allowed: whole numbers from 1, the first of them 1")
    levels = len(multipliers)
    if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
        halvings = max(n for n in range(levels) if height % 2**n == width % 2**n == 0)
        raise UserError(
            f"multipliers: given {levels} of them, allowed: at most {halvings + 1}, since images of {height} x {width} "
            "are halved between levels"
        )


def _check_groups(widths: Sequence[int], groups: int) -> None:
    if any(width % groups for width in widths):
        raise UserError(f"groups: given {groups}, allowed: divisors of the levels' channels {_listed(widths)}")


def _check_attention(widths: Sequence[int], sides: Sequence[int], attention: Sequence[int], head_channels: int) -> None:
    unknown = [side for side in attention if side not in sides]
    if unknown:
        raise UserError(f"attention: given {unknown[0]}, allowed: the widths of the levels {_listed(sides)}")
    attending = [width for width, side in zip(widths, sides, strict=True) if side in attention]
    if attention and any(width % head_channels for width in [*attending, widths[-1]]):
        raise UserError(
            f"head_channels: given {head_channels}, allowed: divisors of the channels "
            f"{_listed([*attending, widths[-1]])} of the levels with attention and the middle"
        )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in dict.fromkeys(numbers))


@torch.no_grad()
def _start_at_zero(net: nn.Module) -> None:
    """Zero the last layer of each residual branch and of the net, as ADM does and diffusers does not."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    last = [net.get_submodule("conv_out")]
    last += [module.conv2 for module in net.modules() if isinstance(module, ResnetBlock2D)]
    last += [module.to_out[0] for module in net.modules() if isinstance(module, Attention)]
    for parameter in nn.ModuleList(last).parameters():
        parameter.zero_()
