"""The data sets this project uses, where each can be had, and fetching one whole and verified."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.tasks import archive
from pipeline.tasks.demonstrations import Demonstrations, read_pusht
from pipeline.tasks.fetching import Form, check_digest, fetch_published, first_of
from pipeline.tasks.image_demonstrations import open_pusht_images
from pipeline.tasks.kitchen_demonstrations import read_kitchen
from pipeline.tasks.robomimic_env import Task as RobomimicTask
from pipeline.tasks.robomimic_files import read_robomimic
from pipeline.utils.errors import UserError

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
class DataSet:
    """A data set: published ones have ``publications``, those of this project ``shipped`` or ``made``.

    Attributes:
        name: its identifier in ``params.yaml`` and reports.
        read: reads it, and complains of what is wrong with it.
        episodes: how many demonstrations it holds; None where nobody knows before it is made.
        title: what it is, in a few words.
        licence: under which terms it may be used, as far as its makers say.
        citation: whom to cite.
        publications: the forms it is published in, the preferred first.
        members: the files and folders of it that are needed; None takes all.
        content_sha256: ``Demonstrations.content_sha256`` of the right contents, whatever they were packed in.
        shipped: the file in this repository, with ``<file>.sha256`` beside it in the format of ``sha256sum``.
        made: the file that the command ``make_it`` leaves, likewise.
    """

    name: str
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


# Without the images: 96 % of the bytes, and no state policy reads them.
PUSHT_STATE_MEMBERS = (".zgroup", "data/.zgroup", "data/state", "data/action", "meta/.zgroup", "meta/episode_ends")

PUSHT_HUMAN = DataSet(
    name="pusht_human",
    title="Push-T human demonstrations, 206 episodes, 25 650 steps",
    licence="MIT (that of the Diffusion Policy code it was published with)",
    citation="Chi et al., Diffusion Policy: Visuomotor Policy Learning via Action Diffusion, RSS 2023",
    read=read_pusht,
    episodes=206,
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
)


def _with_images(path: Path) -> Demonstrations:
    return open_pusht_images(path).demonstrations


def _own(task: str, read: Callable[[Path], Demonstrations], kind: str, ending: str, episodes: int) -> list[DataSet]:
    """The small set of a task that is shipped, and the larger one that the same program makes."""
    citation = "this project; data/demonstrations/README.md says how they were made"
    shipped, made = Path("data", "demonstrations", f"{task}_starter{ending}"), Path("data", "expert", task)
    return [
        DataSet(
            f"{task}_starter",
            f"{kind} demonstrations made by this project in the simulator",
            "MIT",
            citation,
            read,
            episodes,
            shipped=REPOSITORY / shipped,
        ),
        DataSet(
            f"{task}_expert",
            f"{kind} demonstrations by the same program, more of them",
            "MIT",
            citation,
            read,
            made=made,
            make_it=f"dvc repro data/demonstrations/dvc.yaml:demonstrate_expert@{task}",
        ),
    ]


_CHI = "Chi et al., Diffusion Policy: Visuomotor Policy Learning via Action Diffusion, RSS 2023"


def _robomimic(task: RobomimicTask, kind: str, starter_episodes: int) -> list[DataSet]:
    read = partial(_read_one_file, task)
    published = DataSet(
        f"{task}_ph",
        f"Robomimic {kind}, 200 proficient-human demonstrations",
        "MIT (that of Robomimic)",
        f"Mandlekar et al., What Matters in Learning from Offline Human Demonstrations, CoRL 2021; {_CHI}",
        read,
        200,
        publications=(
            Publication(f"{task}_ph_low_dim_abs.hdf5"),
            Publication(
                f"{task}_ph_low_dim_v141.hdf5",
                url=f"http://downloads.cs.stanford.edu/downloads/rt_benchmark/{task}/ph/low_dim_v141.hdf5",
            ),
            Publication(
                "robomimic_lowdim.zip",
                root=f"robomimic/datasets/{task}/ph",
                url="https://diffusion-policy.cs.columbia.edu/data/training/robomimic_lowdim.zip",
                members=("low_dim_abs.hdf5",),
            ),
        ),
    )
    return [*_own(task, read, kind, ".hdf5", starter_episodes), published]


def _read_one_file(task: RobomimicTask, path: Path) -> Demonstrations:
    """The file, or that in the folder that an archive was unpacked to."""
    inside = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
    if len(inside) != 1:
        raise UserError(f"{path}: holds {len(inside)} HDF5 files, expected one")
    return read_robomimic(inside[0], task)


_KITCHEN_MIXED = DataSet(
    "kitchen_mixed",
    "Franka Kitchen, human demonstrations of four of seven subtasks each, 566 episodes",
    "Apache-2.0 (that of relay-policy-learning)",
    f"Gupta et al., Relay Policy Learning, CoRL 2019; {_CHI}",
    read_kitchen,
    566,
    publications=(
        Publication("kitchen"),
        Publication(
            "kitchen.zip",
            root="kitchen",
            url="https://diffusion-policy.cs.columbia.edu/data/training/kitchen.zip",
            members=("observations_seq.npy", "actions_seq.npy", "existence_mask.npy"),
        ),
    ),
)

_ALL = [
    PUSHT_HUMAN,
    replace(
        PUSHT_HUMAN,
        name="pusht_human_image",
        title=f"{PUSHT_HUMAN.title}, with images",
        read=_with_images,
        members=(*PUSHT_STATE_MEMBERS, "data/img"),
    ),
    _own("pusht", read_pusht, "Push-T", ".npz", 200)[0],
    *_own("kitchen", read_kitchen, "Franka Kitchen", ".zip", 100),
    _KITCHEN_MIXED,
    *_robomimic("lift", "Lift", 70),
    *_robomimic("can", "Can", 43),
    *_robomimic("square", "Square", 40),
    *_robomimic("transport", "Transport", 10),
]
DATA_SETS = {data_set.name: data_set for data_set in _ALL}


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


def _place_own(data_set: DataSet, file: Path, fresh: Path) -> None:
    note = file.with_name(f"{file.name}.sha256")
    words = note.read_text(encoding="utf-8").split()
    if not words:
        raise UserError(f"{note}: is empty, expected the file's sha256")
    check_digest(file, words[0])
    shutil.copyfile(file, fresh)
    _check_content(data_set, fresh)


def _place(data_set: DataSet, publication: Publication, path: Path, fresh: Path) -> None:
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


def _check_content(data_set: DataSet, fresh: Path) -> None:
    actual = data_set.read(fresh).content_sha256()
    if data_set.content_sha256 not in (None, actual):
        raise UserError(
            f"{fresh}: holds other demonstrations: content sha256 {actual}, expected {data_set.content_sha256}"
        )
