"""Embedding of the flow time."""

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sinusoidal features of t, as in Vaswani et al. (2017) and DDPM.

    The frequencies are those of diffusion models, made for step counts up to 1000, so t ∈ [0, 1] is scaled up to that
    range. Without the scaling all but the fastest features would be constant.
    """

    scale = 1000.0
    max_period = 10_000.0

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        exponents = torch.arange(half, dtype=torch.float32) / half
        self.register_buffer("frequencies", torch.exp(-math.log(self.max_period) * exponents), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """t: (B,) → (B, width)."""
        angles = self.scale * t[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)
