"""Normalise data affinely to [−1, 1], fitted on training data; the checkpoint stores the normaliser."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Map x ↦ (x − offset) / scale for each component, so that the training data span [−1, 1].

    A module without parameters: its two vectors are buffers, which are saved and moved with the model.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @classmethod
    def of(cls, offset: Tensor, scale: Tensor) -> Normalizer:
        """Make the normaliser with a given offset and scale, both (D,)."""
        normalizer = cls(len(offset))
        normalizer.load_state_dict({"offset": offset, "scale": scale})
        return normalizer

    @classmethod
    def fit(cls, data: Tensor, least: float = 1e-6) -> Normalizer:
        """Fit to data (N, D), float.

        A component with half a range of at most ``least`` is only centred, not scaled, so that the noise on a nearly
        constant component is not amplified.
        """
        low, high = data.amin(0), data.amax(0)
        half = (high - low) / 2
        return cls.of((high + low) / 2, torch.where(half > least, half, torch.ones_like(half)))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalise x (…, D) in data units."""
        return (x - self.offset) / self.scale

    def denormalize(self, x: Tensor) -> Tensor:
        """Convert normalised x (…, D) back to data units."""
        return x * self.scale + self.offset
