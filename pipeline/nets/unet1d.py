"""ConditionalUnet1D: the temporal U-Net of Diffusion Policy (Chi et al. 2023), over a chunk of actions."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.nets.embedding import TimeEmbedding
from pipeline.utils.errors import UserError


def _by_products(x: Tensor) -> bool:
    """Decide whether convolutions of ``x`` are computed as matrix products: under autocast on a CPU.

    oneDNN's convolutions in bfloat16 are slow at horizons of 16 and less; with gradients they are slower than in
    float32 (1024 channels, horizon 4: four times slower than the product). Features then have the memory layout of the
    products, (B, T, C), and keep the shape (B, C, T).
    """
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


class _Conv(nn.Conv1d):
    """Conv1d with zero padding, computed as a matrix product if ``_by_products``."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, T) → (B, out, T')."""
        if not _by_products(x):
            return super().forward(x)
        (kernel,), (stride,), padding = self.kernel_size, self.stride, int(self.padding[0])
        rows = functional.pad(x.to(torch.get_autocast_dtype("cpu")).transpose(1, 2), (0, 0, padding, padding))
        patches = rows.unfold(1, kernel, stride).flatten(2)  # (B, T', C · k)
        return functional.linear(patches, self.weight.flatten(1), self.bias).transpose(1, 2)


class _Norm(nn.GroupNorm):
    """GroupNorm that keeps the memory layout of the features."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, T) → (B, C, T)."""
        if not _by_products(x):
            return super().forward(x)
        return super().forward(x[:, :, None])[:, :, 0]  # only for images is there a channels-last kernel


class _ConvBlock(nn.Sequential):
    """Conv1d → GroupNorm → Mish."""

    def __init__(self, inp: int, out: int, kernel: int, groups: int) -> None:
        super().__init__(_Conv(inp, out, kernel, padding=kernel // 2), _Norm(groups, out), nn.Mish())


class _ResidualBlock(nn.Module):
    """Two conv blocks; the context enters between them as a scale and a shift of each channel (FiLM)."""

    def __init__(self, inp: int, out: int, context_dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.first = _ConvBlock(inp, out, kernel, groups)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(context_dim, 2 * out))
        self.second = _ConvBlock(out, out, kernel, groups)
        self.skip = _Conv(inp, out, 1) if inp != out else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        scale, shift = self.film(context)[:, :, None].chunk(2, dim=1)
        return self.second(self.first(x) * scale + shift) + self.skip(x)


class _Level(nn.Module):
    """Two residual blocks, and a layer that changes the horizon after them."""

    def __init__(self, first: _ResidualBlock, second: _ResidualBlock, resample: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.resample = resample

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features before and after the change of horizon."""
        h = self.second(self.first(x, context), context)
        return h, self.resample(h)


class ConditionalUnet1D(nn.Module):
    """v(t, x, c) for a chunk of actions, by a temporal U-Net.

    Args:
        horizon, action_dim: shape of one sample x, (horizon, action_dim).
        condition_dim: length of the flat condition c.
        channels: width of each level; the horizon is halved between levels.
        kernel: odd size of the temporal convolutions.
        groups: of the group normalisation.
        time_features: number of sinusoidal features of t.

    Raises:
        UserError: the horizon cannot be halved often enough.
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        channels: Sequence[int],
        kernel: int,
        groups: int,
        time_features: int,
    ) -> None:
        super().__init__()
        halvings = len(channels) - 1
        if horizon % 2**halvings:
            raise UserError(
                f"horizon: given {horizon}, allowed: multiples of {2**halvings} for a unet1d of {len(channels)} levels"
            )
        self.time = nn.Sequential(
            TimeEmbedding(time_features),
            nn.Linear(time_features, 4 * time_features),
            nn.Mish(),
            nn.Linear(4 * time_features, time_features),
        )
        context = time_features + condition_dim

        def block(inp: int, out: int) -> _ResidualBlock:
            return _ResidualBlock(inp, out, context, kernel, groups)

        widths = [action_dim, *channels]
        self.down = nn.ModuleList()
        for level, (inp, out) in enumerate(pairwise(widths)):
            shrink = _Conv(out, out, 3, stride=2, padding=1) if level < halvings else nn.Identity()
            self.down.append(_Level(block(inp, out), block(out, out), shrink))
        self.middle = nn.ModuleList([block(channels[-1], channels[-1]), block(channels[-1], channels[-1])])
        self.up = nn.ModuleList()
        for inp, out in zip(reversed(channels[1:]), reversed(channels[:-1]), strict=True):
            grow = nn.ConvTranspose1d(out, out, 4, stride=2, padding=1)
            self.up.append(_Level(block(2 * inp, out), block(out, out), grow))
        self.out = nn.Sequential(
            _ConvBlock(channels[0], channels[0], kernel, groups), _Conv(channels[0], action_dim, 1)
        )

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """t: (B,), x: (B, horizon, action_dim), condition: (B, condition_dim) → velocity, shaped as x."""
        context = torch.cat([self.time(t), condition], dim=-1)
        h = x.transpose(1, 2)
        skips = []
        for level in self.down:
            skip, h = level(h, context)
            skips.append(skip)
        for block in self.middle:
            h = block(h, context)
        for level in self.up:
            _, h = level(torch.cat([h, skips.pop()], dim=1), context)
        return self.out(h).transpose(1, 2)
