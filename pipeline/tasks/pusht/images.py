"""Read Push-T demonstrations with images from the published zarr store, without holding all images in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import ZipStore

from pipeline.tasks.demonstrations import Demonstrations
from pipeline.tasks.formats.arrays import require_whole
from pipeline.tasks.pusht.files import read_pusht
from pipeline.utils.errors import UserError

IMAGE = "data/img"
SIDE = 96
BLOCK = 256
"""Default number of images read at once: 28 MB in float32, the published type."""


@dataclass(frozen=True, eq=False)
class PushTImages:
    """Demonstrations of N steps with the path of their images.

    Attributes:
        path: the zarr folder or zipped zarr store.
        demonstrations: states, actions and episodes.
    """

    path: Path
    demonstrations: Demonstrations

    def blocks(self, size: int = BLOCK) -> Iterator[NDArray[np.uint8]]:
        """Yield the images in order, ``size`` at a time: (≤ size, 96, 96, 3), RGB.

        Raises:
            UserError: images cannot be read, or hold other values than whole numbers from 0 to 255; the images before
                them were yielded.
        """
        with _opened(self.path) as images:
            for start in range(0, images.shape[0], size):
                yield _as_bytes(self.path, start, _read(self.path, images, start, size))


def open_pusht_images(path: Path) -> PushTImages:
    """Read and validate everything but the images themselves.

    Raises:
        UserError: as ``read_pusht``; or ``data/img`` is missing, has another type or shape, or lacks chunks or shards.
    """
    demonstrations = read_pusht(path)
    with _opened(path) as images:
        expected = (len(demonstrations.state), SIDE, SIDE, 3)
        if images.shape != expected:
            raise UserError(f"{path}: array {IMAGE} has shape {images.shape}, expected {expected}")
        if images.dtype.kind != "f" and images.dtype != np.uint8:
            raise UserError(f"{path}: array {IMAGE} has dtype {images.dtype}, expected floating point or uint8")
        require_whole(path, IMAGE, images)
    return PushTImages(path, demonstrations)


@contextmanager
def _opened(path: Path) -> Iterator[zarr.Array]:
    """Yield the array of images while its store is open."""
    if path.is_dir():
        yield _array(path, zarr.open_group(path, mode="r"))
        return
    if path.suffix == ".npz":
        raise UserError(f"{path}: holds no images; expected a zarr folder or zarr zip with {IMAGE}")
    with ZipStore(path, mode="r") as store:
        yield _array(path, zarr.open_group(store, mode="r"))


def _array(path: Path, group: zarr.Group) -> zarr.Array:
    array = group.get(IMAGE)
    if not isinstance(array, zarr.Array):
        raise UserError(f"{path}: array {IMAGE} is missing; the data set pusht_human_image has it")
    return array


def _read(path: Path, images: zarr.Array, start: int, size: int = BLOCK) -> NDArray[np.generic]:
    try:
        return np.asarray(images[start : start + size])
    except Exception as error:  # each codec raises its own exceptions on damaged bytes
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: array {IMAGE} cannot be read from row {start} on: {detail}") from error


def _as_bytes(path: Path, start: int, images: NDArray[np.generic]) -> NDArray[np.uint8]:
    if images.dtype == np.uint8:
        return images.astype(np.uint8)
    with np.errstate(invalid="ignore"):  # NaN and numbers out of range change in this conversion and are found below
        pixels = images.astype(np.uint8)
    same = (pixels == images).all(axis=(1, 2, 3))
    if not same.all():
        raise UserError(
            f"{path}: array {IMAGE} holds other values than whole numbers from 0 to 255, first in row "
            f"{start + int(same.argmin())}"
        )
    return pixels
