"""The experts by task, with the writer of each task's public format. Nothing is imported before it is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.experts.episode import ExpertEpisode
from pipeline.utils.errors import UserError

if TYPE_CHECKING:
    from pipeline.tasks.robomimic_env import Task


@dataclass(frozen=True)
class Expert:
    """How demonstrations of a task are made and stored.

    Attributes:
        demonstrate: seed → the expert's episode, solved or not; a function of the seed alone, and picklable.
        write: (path, episodes) → a file in the public format, the same bytes for the same episodes.
    """

    demonstrate: Callable[[int], ExpertEpisode]
    write: Callable[[Path, Sequence[ExpertEpisode]], None]


def expert(task: str) -> Expert:
    """The expert of ``task``.

    Raises:
        UserError: the task has none.
    """
    if task not in EXPERTS:
        raise UserError(f"--task: given {task!r}, allowed: {', '.join(EXPERTS)}")
    return EXPERTS[task]()


def _kitchen() -> Expert:
    from pipeline.experts import kitchen

    return Expert(kitchen.demonstrate, kitchen.write)


def _one_arm(task: "Task") -> Expert:
    from pipeline.experts import robomimic_lift_can

    return Expert(robomimic_lift_can.EXPERTS[task], partial(_write_robomimic, task))


def _square() -> Expert:
    from pipeline.experts import robomimic_square

    return Expert(robomimic_square.EXPERTS["square"], partial(_write_robomimic, "square"))


def _transport() -> Expert:
    from pipeline.experts import robomimic_transport

    return Expert(robomimic_transport.EXPERTS["transport"], partial(_write_robomimic, "transport"))


def _write_robomimic(task: "Task", path: Path, episodes: Sequence[ExpertEpisode]) -> None:
    from pipeline.tasks.robomimic_files import write_robomimic

    write_robomimic(path, task, episodes)


EXPERTS: dict[str, Callable[[], Expert]] = {
    "kitchen": _kitchen,
    "lift": partial(_one_arm, "lift"),
    "can": partial(_one_arm, "can"),
    "square": _square,
    "transport": _transport,
}
