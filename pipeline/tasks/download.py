"""The data sets this project uses, where each can be had, and fetching one whole and verified."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.errors import UserError
from pipeline.tasks import archive
from pipeline.tasks.demonstrations import read_pusht
from pipeline.tasks.fetching import Form, check_digest, fetch_published, first_of

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
    if data_set.shipped:
        sources = [(str(data_set.shipped), partial(_place_shipped, data_set, data_set.shipped))]
        return first_of(name, sources, destination, "Restore the file and its .sha256 from the repository")
    forms = [
        Form(publication.name, publication.url, partial(_place, data_set, publication))
        for publication in data_set.publications
    ]
    return fetch_published(name, forms, destination, mirror, sleep)


def _place_shipped(data_set: DataSet, file: Path, fresh: Path) -> None:
    note = file.with_name(f"{file.name}.sha256")
    words = note.read_text().split()
    if not words:
        raise UserError(f"{note}: is empty, expected the file's sha256")
    check_digest(file, words[0])
    shutil.copyfile(file, fresh)
    _check_content(data_set, fresh)


def _place(data_set: DataSet, publication: Publication, path: Path, fresh: Path) -> None:
    """Copy or unpack ``path`` to ``fresh``."""
    if path.is_dir():
        archive.copy_folder(path, fresh, data_set.members)
    else:
        if publication.sha256:
            check_digest(path, publication.sha256)
        archive.unpack(path, fresh, publication.root, data_set.members)
    _check_content(data_set, fresh)


def _check_content(data_set: DataSet, fresh: Path) -> None:
    actual = read_pusht(fresh).content_sha256()
    if data_set.content_sha256 not in (None, actual):
        raise UserError(
            f"{fresh}: holds other demonstrations: content sha256 {actual}, expected {data_set.content_sha256}"
        )
