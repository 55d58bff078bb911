"""Fetch a data set, complete and verified, or raise an error."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.tasks import archive
from pipeline.tasks.datasets import Dataset, Publication
from pipeline.tasks.fetching import Form, check_digest, fetch_published, first_of, replacing_path
from pipeline.utils.errors import UserError


def fetch(
    name: str,
    data_set: Dataset,
    destination: Path,
    mirror: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch ``data_set`` to ``destination``: from ``mirror``, else from its official address.

    A source that fails, or gives other data, is skipped. ``destination`` changes only when a source has given the
    complete, verified set. An interrupted download stays beside it as ``<archive>.part``; the next call continues it.

    Args:
        name: its identifier, for messages.
        destination: becomes a zarr folder for a published set, an npz file for a shipped one.
        mirror: a folder with archives or folders as published; None: not searched.
        sleep: waits between attempts to download.

    Returns:
        ``destination``.

    Raises:
        UserError: no source gave the set; the line names each source with the reason, and the remedy. For a set on
            this machine it says what is wrong with the file.
    """
    if data_set.local:
        return _copy_local(data_set, data_set.local, destination)
    if own := data_set.shipped or data_set.made:
        remedy = "Restore the file and its .sha256 from the repository"
        if data_set.made:
            remedy = f"Make it: {data_set.make_it}"
        return first_of(name, [(str(own), partial(_place_own, data_set, own))], destination, remedy)
    forms = [
        Form(publication.name, publication.url, partial(_place, data_set, publication))
        for publication in data_set.publications
    ]
    return fetch_published(name, forms, destination, mirror, sleep)


def _copy_local(data_set: Dataset, local: Path, destination: Path) -> Path:
    """Copy a file or folder of this machine after reading it there, or unpack a zip archive."""
    if data_set.local_sha256 and local.is_dir():
        raise UserError(f"{local}: is a folder, but a sha256 is given, which is of a file")
    packed = local.suffix == ".zip" and local.is_file()
    if not packed:
        data_set.read(local)
    if expected := data_set.local_sha256 or _noted(local):
        check_digest(local, expected)
    with replacing_path(destination) as fresh:
        if packed:
            archive.unpack(local, fresh)
            data_set.read(fresh)
        elif local.is_dir():
            archive.copy_folder(local, fresh, data_set.members)
        else:
            shutil.copyfile(local, fresh)
    return destination


def _place_own(data_set: Dataset, file: Path, fresh: Path) -> None:
    check_digest(file, _noted(file, needed=True))
    shutil.copyfile(file, fresh)
    _check_content(data_set, fresh)


def _noted(file: Path, needed: bool = False) -> str:
    """Read the sha256 from ``<file>.sha256`` beside ``file``; empty if that is absent and not ``needed``."""
    note = file.with_name(f"{file.name}.sha256")
    if not needed and not note.is_file():
        return ""
    words = note.read_text(encoding="utf-8").split()
    if not words:
        raise UserError(f"{note}: is empty, expected the file's sha256")
    return words[0]


def _place(data_set: Dataset, publication: Publication, path: Path, fresh: Path) -> None:
    """Copy or unpack ``path`` to ``fresh``."""
    members = publication.members or data_set.members
    if publication.sha256:
        check_digest(path, publication.sha256)
    if path.is_dir():
        archive.copy_folder(path, fresh, members)
    elif path.name.partition(".part")[0].endswith(".zip"):
        archive.unpack(path, fresh, publication.root, members)
    else:
        shutil.copyfile(path, fresh)
    _check_content(data_set, fresh)


def _check_content(data_set: Dataset, fresh: Path) -> None:
    actual = data_set.read(fresh).content_sha256()
    if data_set.content_sha256 not in (None, actual):
        raise UserError(
            f"{fresh}: holds other demonstrations: content sha256 {actual}, expected {data_set.content_sha256}"
        )
