"""Training batches of images: kept as bytes on the device, mirrored at random."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from pipeline.tasks.images import as_float


@dataclass(frozen=True)
class ImageBatches:
    """Random batches of images without a condition, drawn with replacement; a ``BatchSource``.

    Bytes, since the 50 000 images of CIFAR-10 then take 154 MB of a GPU and not 614.

    Attributes:
        images: (N, C, H, W) uint8.
        flip: whether each image drawn is mirrored left to right with probability 1/2.
    """

    images: Tensor
    flip: bool

    def to(self, device: torch.device) -> Self:
        """These batches on ``device``."""
        return replace(self, images=self.images.to(device))

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """An empty condition (B, 0) and ``size`` random images (B, C, H, W), float32 in [−1, 1]."""
        device = self.images.device
        images = self.images[torch.randint(len(self.images), (size,), generator=generator).to(device)]
        if self.flip:
            mirrored = torch.randint(2, (size, 1, 1, 1), generator=generator).to(device)
            images = torch.where(mirrored.bool(), images.flip(-1), images)
        data = as_float(images)
        return data.new_empty(size, 0), data
