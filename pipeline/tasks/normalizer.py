"""Affine normalisation to [−1, 1], fitted on training data; it travels with the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """x ↦ (x − offset) / scale for each component, offset and scale chosen so that the training data span [−1, 1].

    A module without parameters: its two vectors are buffers, so they are saved with the model and moved with it.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @classmethod
    def of(cls, offset: Tensor, scale: Tensor) -> Normalizer:
        """The normaliser of a given offset and scale, both (D,)."""
        normalizer = cls(len(offset))
        normalizer.load_state_dict({"offset": offset, "scale": scale})
        return normalizer

    @classmethod
    def fit(cls, data: Tensor, least: float = 1e-6) -> Normalizer:
        """Fit to data (N, D), float. A component that varies by no more than ``least`` to either side is only centred,
        so that what is next to constant, and the noise on it, is not blown up."""
        low, high = data.amin(0), data.amax(0)
        half = (high - low) / 2
        return cls.of((high + low) / 2, torch.where(half > least, half, torch.ones_like(half)))

    def normalize(self, x: Tensor) -> Tensor:
        """(…, D) in data units → normalised."""
        return (x - self.offset) / self.scale

    def denormalize(self, x: Tensor) -> Tensor:
        """(…, D) normalised → data units."""
        return x * self.scale + self.offset
