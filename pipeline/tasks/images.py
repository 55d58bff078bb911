"""Store, read and check sets of images, and convert their bytes to a model's values and back."""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.utils.atomic import replacing
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import derive

REQUIRED = ("images", "labels")
OPTIONAL = ("exact", "name")


@dataclass(frozen=True, eq=False)
class Images:
    """N images with their classes.

    Attributes:
        images: (N, C, H, W) uint8, C = 1 grey or C = 3 red, green, blue.
        labels: (N,) uint8, the class of each.
        exact: (N,) bool, False for an image that is not the published original but a decoded JPEG of it.
        name: the data set's name.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    exact: NDArray[np.bool_]
    name: str

    @property
    def note(self) -> str:
        """The note for reports on images that are not exact; empty if all are exact."""
        inexact = int((~self.exact).sum())
        total = f"{len(self.exact):,}".replace(",", " ")
        return f"{inexact} of {total} training images are JPEG decodes" if inexact else ""

    def content_sha256(self) -> str:
        """Hash the values by SHA-256, independent of their storage.

        The hash is over ``images``, ``labels``, ``exact`` in this order, each as the line ``name shape`` followed by
        its bytes in C order.
        """
        digest = hashlib.sha256()
        for name, array in (("images", self.images), ("labels", self.labels), ("exact", self.exact)):
            digest.update(f"{name} {'x'.join(map(str, array.shape))}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write as npz, atomically; equal content gives equal bytes.

        Not compressed: photographs would shrink by a tenth, and zlib's bytes depend on its version.
        """
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                images=np.ascontiguousarray(self.images),
                labels=self.labels,
                exact=self.exact,
                name=np.array(self.name),
            )


def load_images(path: Path) -> Images:
    """Read and check an npz of ``images``, ``labels`` and, optionally, ``exact`` and ``name``, as in ``Images``.

    Without ``exact`` all images are taken for exact. Without ``name`` the set is named after the file.

    Raises:
        UserError: the file is absent or damaged, or an array is missing or has another type or shape.
    """
    if not path.is_file():
        raise UserError(f"{path}: does not exist; expected an npz of images")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: is not an npz file, or truncated")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in (*REQUIRED, *OPTIONAL) if key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: is damaged, or holds other than plain arrays ({reason})") from error
    missing = [key for key in REQUIRED if key not in arrays]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing; an npz of images holds images and labels")
    images, labels = arrays["images"], arrays["labels"]
    _check_type(path, "images", images, np.uint8)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        raise UserError(
            f"{path}: images: given shape {_shape(images)}, "
            "allowed: N x C x H x W with C = 1 or 3, the colours before height and width"
        )
    exact = arrays.get("exact", np.ones(len(images), dtype=bool))
    _check_rows(path, "labels", labels, np.uint8, len(images))
    _check_rows(path, "exact", exact, np.bool_, len(images))
    return Images(images, labels, exact, str(arrays.get("name", path.stem)))


def _check_rows(path: Path, key: str, array: NDArray[np.generic], dtype: type[np.generic], count: int) -> None:
    _check_type(path, key, array, dtype)
    if array.shape != (count,):
        raise UserError(f"{path}: {key}: given shape {_shape(array)}, allowed: {count}, one for each image")


def _check_type(path: Path, key: str, array: NDArray[np.generic], dtype: type[np.generic]) -> None:
    if array.dtype != dtype:
        raise UserError(f"{path}: {key}: given {array.dtype}, allowed: {np.dtype(dtype)}")


def _shape(array: NDArray[np.generic]) -> str:
    return " x ".join(map(str, array.shape)) or "of a single value"


def as_float(images: Tensor) -> Tensor:
    """Convert uint8 images (…) to float32 in [−1, 1]: 0 to −1 and 255 to 1."""
    return images.float() / 127.5 - 1


def as_bytes(images: Tensor) -> Tensor:
    """Convert finite floating-point images (…) to the nearest uint8, the inverse of ``as_float``.

    Values outside [−1, 1] are clipped. Halves are rounded to the even neighbour.
    """
    return (127.5 * images.float() + 127.5).round().clamp(0, 255).to(torch.uint8)


def split_halves(n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw two random disjoint halves of the rows 0 … n − 1, ⌊n/2⌋ each, in increasing order."""
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(derive(seed, "halves"))).numpy()
    half = n // 2
    return np.sort(rows[:half]), np.sort(rows[half : 2 * half])
