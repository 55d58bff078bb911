"""The data sets this project uses, where each can be had, and fetching one whole and verified."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.atomic import make_folder
from pipeline.errors import UserError
from pipeline.tasks import archive, transfer
from pipeline.tasks.demonstrations import read_pusht

MIRROR_VARIABLE = "FLOWTUNE_MIRROR"
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Publication:
    """One form a data set is published in.

    Attributes:
        name: file name of the zip archive, or of the folder.
        root: the folder inside it that is the data set; empty for its own root.
        sha256: of the archive; None where no trustworthy value is known, and for folders.
        url: the official address; None if this form is only found in mirrors.
    """

    name: str
    root: str = ""
    sha256: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set: published ones have ``publications``, one that comes with this project has ``shipped``.

    Attributes:
        name: its identifier in ``params.yaml`` and reports.
        title: what it is, in a few words.
        licence: under which terms it may be used, as far as its makers say.
        citation: whom to cite.
        publications: the forms it is published in, the preferred first.
        members: the files and folders of it that are needed; None takes all.
        content_sha256: ``Demonstrations.content_sha256`` of the right contents, whatever they were packed in.
        shipped: the file in this repository, with ``<file>.sha256`` beside it in the format of ``sha256sum``.
    """

    name: str
    title: str
    licence: str
    citation: str
    publications: tuple[Publication, ...] = ()
    members: tuple[str, ...] | None = None
    content_sha256: str | None = None
    shipped: Path | None = None


# Without the images: 96 % of the bytes, and no state policy reads them.
PUSHT_STATE_MEMBERS = (".zgroup", "data/.zgroup", "data/state", "data/action", "meta/.zgroup", "meta/episode_ends")

DATA_SETS: dict[str, DataSet] = {
    "pusht_human": DataSet(
        name="pusht_human",
        title="Push-T human demonstrations, 206 episodes, 25 650 steps",
        licence="MIT (that of the Diffusion Policy code it was published with)",
        citation="Chi et al., Diffusion Policy: Visuomotor Policy Learning via Action Diffusion, RSS 2023",
        publications=(
            Publication(
                name="pusht_cchi_v7_replay.zarr.zip",
                sha256="5d573bc4bd6f28c3668ef6959b0e0a0db715fda655d25a8d00a9699c4d40397f",
            ),
            Publication(name="pusht_cchi_v7_replay.zarr"),
            Publication(
                name="pusht.zip",
                root="pusht/pusht_cchi_v7_replay.zarr",
                url="https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip",
            ),
        ),
        members=PUSHT_STATE_MEMBERS,
        content_sha256="788b4e0fafabac71d12c8b6fef24097227c887b572eb60dcfa2a2ed260db7cf1",
    ),
    "pusht_starter": DataSet(
        name="pusht_starter",
        title="Push-T demonstrations made by this project in the simulator",
        licence="MIT",
        citation="this project; data/demonstrations/README.md says how they were made",
        shipped=REPOSITORY / "data" / "demonstrations" / "pusht_starter.npz",
    ),
}


def fetch(
    name: str, destination: Path, mirror: Path | None = None, sleep: Callable[[float], None] = time.sleep
) -> Path:
    """Get the data set ``name`` to ``destination``: from ``mirror``, else from its official address.

    Every source that fails, or gives something else than the data set, is passed over for the next. ``destination``
    changes only once a source has given the whole, verified set. A download that breaks off stays beside it as
    ``<archive>.part``, where the next call continues it.

    Args:
        name: a key of ``DATA_SETS``.
        destination: becomes a zarr folder for a published set, an npz file for a shipped one.
        mirror: a folder with archives or folders as they are published; not searched if None.
        sleep: waits between attempts to download.

    Returns:
        ``destination``.

    Raises:
        UserError: there is no such data set; or no source gave it: each is named with the reason, and what to do.
    """
    if name not in DATA_SETS:
        raise UserError(f"data set {name!r} is unknown; allowed are {', '.join(DATA_SETS)}")
    data_set = DATA_SETS[name]
    failures = [] if mirror or data_set.shipped else [f"no mirror ({MIRROR_VARIABLE} is not set)"]
    for label, place in _sources(data_set, destination, mirror, sleep):
        try:
            with _replacing(destination) as fresh:
                place(fresh)
                _check_content(data_set, fresh)
            return destination
        except (UserError, OSError) as error:
            reason = str(error).removeprefix(f"{label}: ").removeprefix(f"{_fresh(destination)}: ")
            failures.append(f"{label}: {' '.join(reason.split())}")
    raise UserError(f"data set {name} could not be had: {'; '.join(failures)}. {_remedy(data_set)}")


Place = Callable[[Path], None]


def _sources(
    data_set: DataSet, destination: Path, mirror: Path | None, sleep: Callable[[float], None]
) -> Iterator[tuple[str, Place]]:
    """Yield each source's name with the function that puts the set in a given place, in the order to try them."""
    if data_set.shipped:
        yield str(data_set.shipped), partial(_place_shipped, data_set.shipped)
    if mirror:
        for publication in data_set.publications:
            path = mirror / publication.name
            yield str(path), partial(_place, path, publication, data_set.members)
    for publication in data_set.publications:
        if publication.url:
            part = destination.with_name(f"{publication.name}.part")
            yield publication.url, partial(_place_download, part, publication, data_set.members, sleep)


def _place_shipped(file: Path, fresh: Path) -> None:
    note = file.with_name(f"{file.name}.sha256")
    words = note.read_text().split()
    if not words:
        raise UserError(f"{note}: is empty, expected the file's sha256")
    _check_sha256(file, words[0])
    shutil.copyfile(file, fresh)


def _place(path: Path, publication: Publication, members: tuple[str, ...] | None, fresh: Path) -> None:
    """Copy or unpack ``path`` to ``fresh``."""
    if path.is_dir():
        archive.copy_folder(path, fresh, members)
        return
    if not path.exists():
        raise UserError(f"{path}: does not exist")
    if publication.sha256:
        _check_sha256(path, publication.sha256)
    archive.unpack(path, fresh, publication.root, members)


def _place_download(
    part: Path,
    publication: Publication,
    members: tuple[str, ...] | None,
    sleep: Callable[[float], None],
    fresh: Path,
) -> None:
    assert publication.url
    transfer.download(publication.url, part, sleep)
    try:
        _place(part, publication, members, fresh)
    finally:
        transfer.discard(part)  # right or wrong, it is whole: continuing it would bring nothing


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected.lower():
        raise UserError(f"{path}: wrong checksum: sha256 {actual}, expected {expected}")


def _check_content(data_set: DataSet, fresh: Path) -> None:
    actual = read_pusht(fresh).content_sha256()
    if data_set.content_sha256 not in (None, actual):
        raise UserError(
            f"{fresh}: holds other demonstrations: content sha256 {actual}, expected {data_set.content_sha256}"
        )


def _remedy(data_set: DataSet) -> str:
    if data_set.shipped:
        return "Restore the file and its .sha256 from the repository"
    names = ", ".join(publication.name for publication in data_set.publications)
    return f"Put one of {names} in a folder and set {MIRROR_VARIABLE} to that folder"


@contextmanager
def _replacing(destination: Path) -> Iterator[Path]:
    """Yield a path beside ``destination`` for a new file or folder, which takes its place on success.

    What a killed process left is removed: the names are fixed, since one stage at a time writes ``destination``.
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
