"""What a task is: the one interface between a benchmark, or a robot of your own, and the rest of this project.

A module defines a task by assigning it to ``TASK``: ``pipeline/tasks/<name>`` one of this project's own, any other
module or file one of yours (``pipeline.tasks.loader``). Everything particular to a task lies behind it. Simulators and
readers are imported inside the functions that need them, since settings are checked without either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.tasks.camera import Camera
from pipeline.tasks.datasets import Dataset, Publication
from pipeline.tasks.demonstrations import Demonstrations
from pipeline.tasks.types import Observe
from pipeline.tasks.vector import Env, Evaluation, Transition

__all__ = [
    "Camera",
    "Dataset",
    "Demonstrations",
    "Env",
    "EnvSpec",
    "Observation",
    "Options",
    "PaperFacts",
    "Publication",
    "Task",
    "TaskFamily",
    "Transition",
]


class Options(BaseModel):
    """Settings of a task's environments, ``evaluation.options`` in params.yaml; every one has a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Observation:
    """One way to observe a task.

    Attributes:
        dim: numbers that the net sees, beside an image if there is one.
        encode: raw states (…, S) → those numbers (…, dim) float32.
        render: raw states (…, S) → the images (…, H, W, 3), uint8, that are seen beside them; None: none are.
        camera: what took them, where raw states hold them, since nothing draws them; ``render`` is its ``draw``.
    """

    dim: int
    encode: Observe
    render: Callable[[NDArray[np.floating]], NDArray[np.uint8]] | None = None
    camera: Camera | None = None


def seeded(seed: int, options: Any) -> dict[str, Any]:
    """The reset arguments of an environment that draws its initial state from a seed."""
    del options
    return {"seed": seed}


@dataclass(frozen=True)
class EnvSpec:
    """One way to evaluate policies in simulation.

    Attributes:
        make: (max_steps) → an environment that ends its episodes after so many steps. Called in worker processes, so it
            is picklable: a class, a function of a module, or a ``partial`` of one.
        max_steps: steps of an episode in the literature.
        reset_arguments: (seed, the task's options) → keywords of ``Env.reset``. Equal ones start equal episodes, to
            the bit.
        renders: whether its environments draw themselves, ``render() -> (H, W, 3) uint8``, for videos.
    """

    make: Callable[[int], Env]
    max_steps: int
    reset_arguments: Callable[[int, Any], Mapping[str, Any]] = seeded
    renders: bool = True

    def evaluation(self, options: BaseModel | None = None, max_steps: int | None = None) -> Evaluation:
        """What a rollout needs of it, with a task's ``options``; ``max_steps``: those of the literature."""
        limit = self.max_steps if max_steps is None else max_steps
        return Evaluation(partial(self.make, limit), partial(self._reset_arguments, options), limit)

    def _reset_arguments(self, options: BaseModel | None, seed: int) -> Mapping[str, Any]:
        return self.reset_arguments(seed, options)


@dataclass(frozen=True)
class PaperFacts:
    """What the paper says of a task.

    Attributes:
        dataset: the data set that it learned from.
        columns: environment → its pair of columns in Table 2, from 0.
        observations: kinds of observation that its rows of Tables D.1 and D.2 are shown beside.
        d1: chunk, horizon, observation, net, its millions of parameters, encoder, its millions, two learning rates.
        d2: robots, objects, components of an action, demonstrations, steps, whether images are observed.
    """

    dataset: str
    columns: Mapping[str, int]
    observations: tuple[str, ...]
    d1: tuple[object, ...]
    d2: tuple[object, ...]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        title: its name in tables.
        datasets: demonstrations to learn it from, by their identifiers in params.yaml and reports.
        observations: ways to observe it, by name.
        action_dim: components of an action.
        envs: ways to evaluate it in simulation, by name; the name of a sole one may be empty. None: an offline task,
            which is evaluated on held-out episodes.
        options: settings of its environments; None: they have none.
        subtasks: parts that an episode can complete, of which the score is the share; 0: it has no parts.
        series: whether it is a time series, each episode a stretch of it, the earliest first: the last ones are held
            out, and no window is filled up where an episode ends.
        least_variation: half the range, in raw units, below which an observed component is taken for constant.
        action_bounds: the lowest and the highest action, each (action_dim,); None: nobody says.
        robots, objects: how many it is about, where somebody has counted.
        paper: None: it is not in the paper.
        check: (demonstrations, ``data.horizon``) → refuses, by a ``UserError``, those that cannot be learned from or
            are not of its environments, before anything is trained; None: it refuses none.
        expert: a scripted expert, ``module:name`` of a ``pipeline.experts.episode.Expert``; of a task made from a
            block's key ``custom``, of a function of it that returns one. Empty: there is none.
    """

    title: str
    datasets: Mapping[str, Dataset]
    observations: Mapping[str, Observation]
    action_dim: int
    envs: Mapping[str, EnvSpec] = field(default_factory=dict)
    options: type[Options] | None = None
    subtasks: int = 0
    series: bool = False
    least_variation: float = 1e-6
    action_bounds: tuple[Sequence[float], Sequence[float]] | None = None
    robots: int | None = None
    objects: int | None = None
    paper: PaperFacts | None = None
    check: Callable[[Demonstrations, int], None] | None = None
    expert: str = ""

    @property
    def offline(self) -> bool:
        """Whether it has no simulation."""
        return not self.envs

    def options_from(self, given: Mapping[str, Any]) -> Options | None:
        """Its options as ``given``, the others at their defaults; None: it has none. Raises pydantic's errors."""
        return self.options.model_validate(dict(given)) if self.options else None

    def evaluations(self, block: str) -> dict[str, EnvSpec]:
        """Its environments by the names that episodes and tables of the ``block`` in params.yaml have for them."""
        return {f"{block}_{name}" if name else block: env for name, env in self.envs.items()}


@dataclass(frozen=True)
class TaskFamily:
    """Tasks made from settings: a module's ``TASK`` may be one, for blocks of params.yaml that describe a task.

    Attributes:
        settings: the model of the block's key ``custom``; its messages are ``key: given …, allowed: …``.
        make: those settings → the task; raises ``UserError``.
    """

    settings: type[BaseModel]
    make: Callable[[Any], Task]
