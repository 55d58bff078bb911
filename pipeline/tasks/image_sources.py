"""Define the image sets of this project and their sources; fetch a set complete and verified."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.tasks import cifar10
from pipeline.tasks.fetching import Form, fetch_published
from pipeline.tasks.images import Images, load_images
from pipeline.utils.errors import UserError


@dataclass(frozen=True)
class Published:
    """One published form of an image set: its file or folder, its official address if any, and its reader."""

    name: str
    read: Callable[[Path], Images]
    url: str | None = None


@dataclass(frozen=True)
class ImageSet:
    """An image set. A set that comes with a library has ``made``, the others have ``published``.

    Attributes:
        title: a description in a few words.
        licence: its terms of use, as far as its authors state them.
        citation: the reference to cite.
        shape: (N, C, H, W).
        per_class: images per class, if all classes have the same number.
        made: makes it without a file.
        published: its published forms, the preferred form first.
    """

    title: str
    licence: str
    citation: str
    shape: tuple[int, int, int, int]
    per_class: int | None = None
    made: Callable[[], Images] | None = None
    published: tuple[Published, ...] = ()


def digits() -> Images:
    """Load scikit-learn's handwritten digits (Kaynak and Alpaydin, 1998); grey values 0 … 16 become 0 … 255."""
    from sklearn.datasets import load_digits  # here, since this import takes a second and other tasks do not need it

    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)[:, None]
    return Images(images, bunch.target.astype(np.uint8), np.ones(len(images), dtype=bool), "digits")


IMAGE_SETS: dict[str, ImageSet] = {
    "digits": ImageSet(
        title="handwritten digits, 1797 grey images of 8 × 8",
        licence="CC BY 4.0",
        citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998",
        shape=(1797, 1, 8, 8),
        made=digits,
    ),
    "cifar10": ImageSet(
        title="CIFAR-10, its 50 000 training images of 32 × 32 in colour",
        licence="none stated by its makers, who ask to be cited",
        citation="Krizhevsky, Learning multiple layers of features from tiny images, 2009",
        shape=(50_000, 3, 32, 32),
        per_class=5_000,
        published=(
            Published(
                name="cifar-10-python.tar.gz",
                read=cifar10.read_archive,
                url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            ),
            Published(name=cifar10.FOLDER, read=cifar10.read_folder),
            Published(name="cifar10_train.npz", read=load_images),
        ),
    ),
}


def fetch_images(
    name: str, destination: Path, mirror: Path | None = None, sleep: Callable[[float], None] = time.sleep
) -> Path:
    """Fetch the image set ``name`` to ``destination``: from ``mirror``, else from its official address.

    A source that fails, or gives other data, is skipped. ``destination`` changes only when a source has given the
    complete, verified set. All sources of exact images give the same bytes.

    Args:
        name: a key of ``IMAGE_SETS``.
        destination: becomes an npz file, see ``Images.save``.
        mirror: a folder with files or folders as published; None: not searched.
        sleep: waits between attempts to download.

    Returns:
        ``destination``.

    Raises:
        UserError: there is no such set; or no source gave it: the line names each source with the reason, and the
            remedy.
    """
    if name not in IMAGE_SETS:
        raise UserError(f"data set {name!r} is unknown; allowed are {', '.join(IMAGE_SETS)}")
    image_set = IMAGE_SETS[name]
    if image_set.made:
        images = image_set.made()
        _check(name, images, image_set)
        images.save(destination)
        return destination
    forms = [
        Form(published.name, published.url, partial(_place, name, image_set, published.read))
        for published in image_set.published
    ]
    return fetch_published(name, forms, destination, mirror, sleep)


def _place(name: str, image_set: ImageSet, read: Callable[[Path], Images], path: Path, fresh: Path) -> None:
    images = replace(read(path), name=name)
    _check(str(path), images, image_set)
    images.save(fresh)


def _check(where: str, images: Images, image_set: ImageSet) -> None:
    if images.images.shape != image_set.shape:
        raise UserError(f"{where}: images: given shape {images.images.shape}, allowed: {image_set.shape}")
    counts = np.bincount(images.labels, minlength=10).tolist()
    if image_set.per_class is not None and counts != 10 * [image_set.per_class]:
        raise UserError(f"{where}: labels: given {counts} of the classes, allowed: {image_set.per_class} of each of 10")
