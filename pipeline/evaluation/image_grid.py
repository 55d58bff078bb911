"""Grids of images as PNG files."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.image_models import ImageModel
from pipeline.tasks.images import as_bytes
from pipeline.utils.atomic import replacing
from pipeline.utils.seeding import Generators

Images = NDArray[np.uint8]
"""(N, C, H, W), C 1 or 3."""

_GAP = 2  # white pixels between images
_SHOWN = 64
_LEGIBLE = 64  # pixels: smaller images are enlarged to about this side


def image_grid(images: Images, columns: int, path: Path) -> None:
    """Write ``images`` (N, C, H, W) as one PNG of ``columns`` images a row; small ones are enlarged by a whole factor.

    Raises:
        ValueError: as of ``tile``.
    """
    with replacing(path) as temporary:
        iio.imwrite(temporary, tile(images, columns), extension=".png")


@torch.no_grad()
def sample_grid(model: ImageModel, solver: str, shape: tuple[int, int, int], seed: int, path: Path) -> None:
    """Write 64 samples of ``model`` as one PNG, always from the same noise, to be looked at as training goes.

    Args:
        shape: (C, H, W) of an image. seed: of the noise.
    """
    noise = torch.randn(_SHOWN, *shape, generator=Generators(seed)["shown noise"])
    shown, _ = model.sample(noise, solver, torch.Generator().manual_seed(seed))
    image_grid(as_bytes(shown).cpu().numpy(), round(_SHOWN**0.5), path)


def tile(images: Images, columns: int) -> NDArray[np.uint8]:
    """``images`` (N, C, H, W) side by side on white, row by row: (height, width), with 3 channels if they have.

    Every pixel becomes a square of equal pixels, so that images of 8 × 8 can be looked at and none is resampled.

    Raises:
        ValueError: they are not uint8, not (N, 1 or 3, H, W), there are none, or ``columns`` is below 1.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0 or columns < 1:
        raise ValueError(
            f"a grid needs uint8 images (N, 1 or 3, H, W) and at least one column, not {images.dtype} {images.shape} "
            f"and {columns}"
        )
    factor = max(1, _LEGIBLE // max(images.shape[2:]))
    large = images.transpose(0, 2, 3, 1).repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = large.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), 255, dtype=np.uint8)
    for number, image in enumerate(large):
        top, left = (number // columns) * (height + _GAP), (number % columns) * (width + _GAP)
        canvas[top : top + height, left : left + width] = image
    return canvas[..., 0] if channels == 1 else canvas
