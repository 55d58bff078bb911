"""Read CIFAR-10's training images as published: Python pickles in a tar archive or a folder.

The format: https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, Learning multiple layers of features from tiny
images, 2009). A pickle can run any code when it is read. The unpickler here therefore accepts only arrays of bytes.
"""

import hashlib
import io
import math
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct
from numpy.typing import NDArray

from pipeline.tasks.fetching import check_digest
from pipeline.tasks.images import Images
from pipeline.utils.errors import UserError

FOLDER = "cifar-10-batches-py"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
"""File → MD5, as in torchvision; the archive's MD5 is from the official page."""
SHAPE = (3, 32, 32)
MAX_BATCH_BYTES = 64 * 1024**2  # twice the official size, so that a wrong archive cannot fill the memory


def read_archive(path: Path, md5: str = ARCHIVE_MD5, batches: Mapping[str, str] = BATCHES) -> Images:
    """Read ``cifar-10-python.tar.gz``; nothing is unpacked to disk.

    Args:
        md5: of the archive. batches: the files of its training images, in order, with the MD5 of each.

    Raises:
        UserError: the archive or a file in it is damaged or not the published one; or a file is missing, is a link, is
            there twice or is larger than ``MAX_BATCH_BYTES``.
    """
    check_digest(path, md5, "md5")
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:  # in the archive's order, since going back would decompress it again
                folder, _, name = member.name.rpartition("/")
                if folder == FOLDER and name in batches:
                    if not member.isreg() or member.size > MAX_BATCH_BYTES or name in contents:
                        raise UserError(f"{path}: refused: {member.name} is no plain file, too large or there twice")
                    file = archive.extractfile(member)
                    assert file is not None  # None is only for links and folders
                    contents[name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: is not a whole tar.gz archive, truncated or damaged ({error})") from error
    return _join(path, contents.get, batches)


def read_folder(path: Path, batches: Mapping[str, str] = BATCHES) -> Images:
    """Read the folder ``cifar-10-batches-py``, to which the archive unpacks.

    Raises:
        UserError: a file is missing, damaged or not the published one.
    """

    def content(name: str) -> bytes | None:
        return (path / name).read_bytes() if (path / name).is_file() else None

    return _join(path, content, batches)


def _join(path: Path, content: Callable[[str], bytes | None], batches: Mapping[str, str]) -> Images:
    parts = []
    for name, md5 in batches.items():
        data = content(name)
        if data is None:
            raise UserError(f"{path}: {name} is missing in it")
        actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if actual != md5:
            raise UserError(f"{path}: {name}: wrong checksum: md5 {actual}, expected {md5}")
        parts.append(read_batch(data, f"{path}: {name}"))
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return Images(images, labels, np.ones(len(images), dtype=bool), "cifar10")


def read_batch(data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read one pickled batch: ``b'data'`` (N, 3072) uint8, the planes R, G, B of 32 rows, and ``b'labels'``, a list.

    Args:
        where: the batch's name, for messages.

    Returns:
        Images (N, 3, 32, 32) and labels (N,), both uint8.

    Raises:
        UserError: the batch cannot be read without running code, is damaged, or has other contents.
    """
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        rows, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except Exception as error:  # damaged bytes raise many kinds of exceptions
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: is not a batch of CIFAR-10 ({type(error).__name__}: {reason})") from error
    if rows.dtype != np.uint8 or rows.shape != (*labels.shape, math.prod(SHAPE)):
        raise UserError(
            f"{where}: data: given {rows.dtype} {rows.shape}, allowed: uint8, a row of 3072 for each of the labels"
        )
    if labels.dtype.kind != "i" or labels.ndim != 1 or not set(labels.tolist()) <= set(range(10)):
        raise UserError(f"{where}: labels: given {labels.dtype} {labels.shape}, allowed: a list of integers, 0 to 9")
    return rows.reshape(-1, *SHAPE), labels.astype(np.uint8)


class _Unpickler(pickle.Unpickler):
    """Unpickler that builds only numbers, strings, lists, dicts and arrays of bytes, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused: it asks for {module}.{name}") from None


def _byte(kind: object, *_: object) -> np.dtype[np.uint8]:
    if kind not in (b"u1", "u1"):
        raise pickle.UnpicklingError(f"refused: it asks for an array of {kind!r}")
    # A copy, since unpickling sets its state. numpy's own function would warn about align=0 in the batches.
    return np.dtype(np.uint8, copy=True)


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _byte,
}
