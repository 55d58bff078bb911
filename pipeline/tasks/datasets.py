"""Describe a data set: its authors, its reader and its sources."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.tasks.demonstrations import Demonstrations, ImageDemonstrations

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Publication:
    """One published form of a data set.

    Attributes:
        name: name of the zip archive, of the folder, or of the single file.
        root: the folder inside it that is the data set; empty for its own root.
        sha256: hash of the archive or file; None for folders, and if no trustworthy value is known.
        url: the official address; None if this form is only found in mirrors.
        members: the needed members of this form, if they differ from those of the data set.
    """

    name: str
    root: str = ""
    sha256: str | None = None
    url: str | None = None
    members: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set from one kind of source.

    Published sets have ``publications``; sets of this project ``shipped`` or ``made``; sets of this machine ``local``.

    Attributes:
        title: a description in a few words.
        licence: its terms of use, as far as its authors state them.
        citation: the reference to cite.
        read: reads the file or folder; raises ``UserError`` if something is wrong with it.
        episodes: number of demonstrations; None if it is unknown before the set is made.
        publications: its published forms, the preferred form first.
        members: the files and folders needed from it; None: all.
        content_sha256: ``Demonstrations.content_sha256`` of the correct contents, the same for every form.
        shipped: the file in this repository, with ``<file>.sha256`` beside it in the format of ``sha256sum``.
        made: the file that the command ``make_it`` writes, also with ``<file>.sha256`` beside it.
        local: a file or folder of this machine. local_sha256: the file's hash, if known; else ``<file>.sha256`` beside
            it is used, if it exists.
        images: as ``read``, with one image for each step; None: it has no images.
    """

    title: str
    licence: str
    citation: str
    read: Callable[[Path], Demonstrations]
    episodes: int | None = None
    publications: tuple[Publication, ...] = ()
    members: tuple[str, ...] | None = None
    content_sha256: str | None = None
    shipped: Path | None = None
    made: Path | None = None
    make_it: str = ""
    local: Path | None = None
    local_sha256: str | None = None
    images: Callable[[Path], ImageDemonstrations] | None = None


def own_datasets(
    task: str, kind: str, ending: str, episodes: int, read: Callable[[Path], Demonstrations]
) -> dict[str, Dataset]:
    """Return this project's data sets of a task: a small shipped set, and a larger set that the same program makes.

    Args:
        kind: the task's name for titles.
        ending: the ending of the shipped file's name.
        episodes: the number of episodes in the shipped set.
    """
    citation = "this project; data/demonstrations/README.md says how they were made"
    shipped, made = Path("data", "demonstrations", f"{task}_starter{ending}"), Path("data", "expert", task)
    return {
        f"{task}_starter": Dataset(
            f"{kind} demonstrations made by this project in the simulator",
            "MIT",
            citation,
            read,
            episodes,
            shipped=REPOSITORY / shipped,
        ),
        f"{task}_expert": Dataset(
            f"{kind} demonstrations by the same program, more of them",
            "MIT",
            citation,
            read,
            made=made,
            make_it=f"dvc repro data/demonstrations/dvc.yaml:demonstrate_expert@{task}",
        ),
    }
