"""Fetch a data set from the first of several sources that gives it complete and verified."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.tasks import transfer
from pipeline.utils.atomic import make_folder
from pipeline.utils.errors import UserError

MIRROR_VARIABLE = "FLOWTUNE_MIRROR"

Place = Callable[[Path], None]
"""Puts the verified data set at a path, or raises ``UserError`` or ``OSError``."""


@dataclass(frozen=True)
class Form:
    """One published form of a data set.

    Attributes:
        name: file or folder name.
        url: the official address; None if this form is only found in mirrors.
        place: (published file or folder, path) → puts the verified data set at the path.
    """

    name: str
    url: str | None
    place: Callable[[Path, Path], None]


def fetch_published(
    what: str, forms: Sequence[Form], destination: Path, mirror: Path | None, sleep: Callable[[float], None]
) -> Path:
    """Fetch a data set to ``destination``: in any of ``forms`` from ``mirror``, else from an official address.

    An interrupted download stays beside ``destination`` as ``<form>.part``; the next call continues it.

    Args:
        what: the data set's name, for messages.
        mirror: a folder with the forms under their names; None: not searched.
        sleep: waits between attempts to download.

    Returns:
        ``destination``.

    Raises:
        UserError: no source gave the set; the line names each source with the reason, and the remedy.
    """
    from_mirror = [(str(mirror / form.name), partial(_existing, form, mirror / form.name)) for form in forms if mirror]
    downloaded = [
        (form.url, partial(_download, form, form.url, destination.with_name(f"{form.name}.part"), sleep))
        for form in forms
        if form.url
    ]
    remedy = f"Put one of {', '.join(form.name for form in forms)} in a folder and set {MIRROR_VARIABLE} to that folder"
    passed_over = [] if mirror else [f"no mirror ({MIRROR_VARIABLE} is not set)"]
    return first_of(what, [*from_mirror, *downloaded], destination, remedy, passed_over)


def first_of(
    what: str, sources: Iterable[tuple[str, Place]], destination: Path, remedy: str, passed_over: Sequence[str] = ()
) -> Path:
    """Put the data set at ``destination`` from the first source that gives it complete and verified.

    ``destination`` stays unchanged until then.

    Args:
        sources: name of each source, and the function that puts its data set at a path.
        remedy: advice to the user if no source gives the set.
        passed_over: reasons why other sources were not tried.

    Raises:
        UserError: no source gave the data set.
    """
    failures = list(passed_over)
    for label, place in sources:
        try:
            with replacing_path(destination) as fresh:
                place(fresh)
            return destination
        except (UserError, OSError) as error:
            reason = str(error).removeprefix(f"{label}: ").removeprefix(f"{_fresh(destination)}: ")
            failures.append(f"{label}: {' '.join(reason.split())}")
    raise UserError(f"data set {what} could not be had: {'; '.join(failures)}. {remedy}")


def check_digest(path: Path, expected: str, algorithm: str = "sha256") -> None:
    """Compare a file's checksum with the ``expected`` one, in hexadecimal.

    Raises:
        UserError: they differ.
    """
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    if actual != expected.lower():
        raise UserError(f"{path}: wrong checksum: {algorithm} {actual}, expected {expected}")


def _existing(form: Form, path: Path, fresh: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: does not exist")
    form.place(path, fresh)


def _download(form: Form, url: str, part: Path, sleep: Callable[[float], None], fresh: Path) -> None:
    transfer.download(url, part, sleep)
    try:
        form.place(part, fresh)
    finally:
        transfer.discard(part)  # it is complete, right or wrong, so there is nothing to continue


@contextmanager
def replacing_path(destination: Path) -> Iterator[Path]:
    """Yield a path beside ``destination`` for a new file or folder, which replaces ``destination`` on success.

    Leftovers of a killed process are removed first. Their names are fixed, since only one stage writes ``destination``.
    """
    make_folder(destination.parent)
    fresh = _fresh(destination)
    former = destination.with_name(f".{destination.name}.former")
    _remove(fresh)
    _remove(former)
    try:
        yield fresh
        if destination.exists() or destination.is_symlink():
            destination.replace(former)  # a folder cannot be renamed over another
        fresh.replace(destination)
        _remove(former)
    finally:
        _remove(fresh)


def _fresh(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.fresh")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
