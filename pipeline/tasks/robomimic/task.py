"""Make the task interface of one of Robomimic's tasks."""

from functools import partial
from pathlib import Path

from pipeline.tasks.api import Dataset, Demonstrations, EnvSpec, Observation, PaperFacts, Publication
from pipeline.tasks.api import Task as Interface
from pipeline.tasks.datasets import own_datasets
from pipeline.tasks.robomimic.env import ACTION_DIM, MAX_STEPS, OBSERVATION_DIM, Robomimic, observe
from pipeline.tasks.robomimic.simulator import ARMS, Task
from pipeline.utils.errors import UserError


def robomimic_task(
    task: Task, title: str, starter_episodes: int, expert: str, *, objects: int = 1, paper: PaperFacts | None = None
) -> Interface:
    """Make the interface of ``task``.

    Args:
        starter_episodes: demonstrations in the shipped set.
        expert: as ``pipeline.tasks.api.Task.expert``.
    """
    read = partial(_read_one_file, task)
    return Interface(
        title=title,
        datasets=own_datasets(task, title, ".hdf5", starter_episodes, read) | {f"{task}_ph": _published(task, title)},
        observations={
            kind: Observation(dim, partial(observe, kind=kind)) for kind, dim in OBSERVATION_DIM[task].items()
        },
        action_dim=ACTION_DIM[task],
        envs={"": EnvSpec(partial(Robomimic, task), MAX_STEPS[task])},
        robots=ARMS[task],
        objects=objects,
        paper=paper,
        expert=expert,
    )


def _published(task: Task, title: str) -> Dataset:
    return Dataset(
        f"Robomimic {title}, 200 proficient-human demonstrations",
        "MIT (that of Robomimic)",
        "Mandlekar et al., What Matters in Learning from Offline Human Demonstrations, CoRL 2021; Chi et al., "
        "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion, RSS 2023",
        partial(_read_one_file, task),
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


def _read_one_file(task: Task, path: Path) -> Demonstrations:
    """Read a file, or the only file in the folder of an unpacked archive."""
    from pipeline.tasks.robomimic.files import read_robomimic

    inside = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
    if len(inside) != 1:
        raise UserError(f"{path}: holds {len(inside)} HDF5 files, expected one")
    return read_robomimic(inside[0], task)
