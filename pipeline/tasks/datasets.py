"""What is known of a data set: who made it, how it is read and where it can be had."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.tasks.demonstrations import Demonstrations, ImageDemonstrations

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Publication:
    """One form a data set is published in.

    Attributes:
        name: name of the zip archive, of the folder, or of the one file that is the data set.
        root: the folder inside it that is the data set; empty for its own root.
        sha256: of the archive or file; None where no trustworthy value is known, and for folders.
        url: the official address; None if this form is only found in mirrors.
        members: as of the data set, where this form has others.
    """

    name: str
    root: str = ""
    sha256: str | None = None
    url: str | None = None
    members: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set: published ones have ``publications``, those of this project ``shipped`` or ``made``, those of this
    machine ``local``.

    Attributes:
        title: what it is, in a few words.
        licence: under which terms it may be used, as far as its makers say.
        citation: whom to cite.
        read: reads it, file or folder, and raises ``UserError`` where something is wrong with it.
        episodes: how many demonstrations it holds; None where nobody knows before it is made.
        publications: the forms it is published in, the preferred first.
        members: the files and folders of it that are needed; None takes all.
        content_sha256: ``Demonstrations.content_sha256`` of the right contents, whatever they were packed in.
        shipped: the file in this repository, with ``<file>.sha256`` beside it in the format of ``sha256sum``.
        made: the file that the command ``make_it`` leaves, likewise.
        local: a file or folder of this machine. local_sha256: of the file, if it is known; else what ``<file>.sha256``
            beside it says, if that is there.
        images: as ``read``, with the images that go with the steps; None: it has none.
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
    """The small set of a task that is shipped, and the larger one that the same program makes.

    Args:
        kind: the task in the words of a title.
        ending: of the shipped file's name.
        episodes: of the shipped set.
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
