"""Define ``Task``, the interface between a benchmark, or a robot of your own, and the rest of this project.

A module defines a task by assigning it to ``TASK``. The modules ``pipeline/tasks/<name>`` define this project's tasks;
any other module or file defines one of yours (``pipeline.tasks.loader``). Everything particular to a task lies behind
this interface. Simulators and readers are imported only inside the functions that need them: settings are checked
without them.
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
from pipeline.tasks.vector import Env, EnvFactory, Transition

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
    """Settings of a task's environments, ``evaluation.options`` in params.yaml; each has a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Observation:
    """One way to observe a task.

    Attributes:
        dim: size of the observation vector that the net sees, beside an image if there is one.
        encode: raw states (…, S) → observation vectors (…, dim) float32.
        render: raw states (…, S) → images (…, H, W, 3), uint8, seen beside the vectors; None: no images.
        camera: the camera whose images the raw states hold, if nothing can draw them; ``render`` is then its ``draw``.
    """

    dim: int
    encode: Observe
    render: Callable[[NDArray[np.floating]], NDArray[np.uint8]] | None = None
    camera: Camera | None = None


def seeded(seed: int, options: Any) -> dict[str, Any]:
    """Return the reset arguments of an environment that draws its initial state from a seed."""
    del options
    return {"seed": seed}


@dataclass(frozen=True)
class EnvSpec:
    """One way to evaluate policies in simulation.

    Attributes:
        make: max_steps → an environment that ends its episodes after ``max_steps`` steps. It is called in worker
            processes and so must be picklable: a class, a function of a module, or a ``partial`` of one.
        max_steps: steps of an episode in the literature.
        reset_arguments: (seed, the task's options) → keyword arguments of ``Env.reset``. Equal arguments must start
            bitwise equal episodes.
        renders: whether its environments have ``render() -> (H, W, 3) uint8``, for videos.
    """

    make: Callable[[int], Env]
    max_steps: int
    reset_arguments: Callable[[int, Any], Mapping[str, Any]] = seeded
    renders: bool = True

    def factory(self, options: BaseModel | None = None, max_steps: int | None = None) -> EnvFactory:
        """Bind a task's ``options`` and the limit of steps; ``max_steps`` None: as in the literature."""
        limit = self.max_steps if max_steps is None else max_steps
        return EnvFactory(partial(self.make, limit), partial(self._reset_arguments, options), limit)

    def _reset_arguments(self, options: BaseModel | None, seed: int) -> Mapping[str, Any]:
        return self.reset_arguments(seed, options)


@dataclass(frozen=True)
class PaperFacts:
    """Facts that the paper states about a task.

    Attributes:
        dataset: the data set that the paper learns from.
        columns: environment → index of its pair of columns in Table 2, from 0.
        observations: observations of this project beside which the paper's rows of Tables D.1 and D.2 are shown.
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
        envs: ways to evaluate it in simulation, by name; a single one may have an empty name. If empty, the task is
            offline: it is evaluated on held-out episodes.
        options: settings of its environments; None: they have none.
        subtasks: number of subtasks that an episode can complete; the score is the completed share. 0: no subtasks.
        series: whether the data are a time series. Then each episode is a stretch of it, the earliest first; the last
            episodes are held out, and no window is padded at the end of an episode.
        least_variation: half a range, in raw units; an observed component that varies by less is taken for constant.
        action_bounds: the lowest and the highest action, each (action_dim,); None: unknown.
        robots, objects: their numbers; None: unknown.
        paper: facts that the paper states; None: the task is not in the paper.
        check: (demonstrations, ``data.horizon``) → raises ``UserError``, before anything is trained, if they cannot be
            learned from or do not fit the environments; None: no check.
        expert: a scripted expert, ``module:name`` of a ``pipeline.experts.episode.Expert``. For a task made from a
            block's key ``custom``: of a function that maps these settings to one. Empty: no expert.
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
        """True if the task has no simulation."""
        return not self.envs

    def options_from(self, given: Mapping[str, Any]) -> Options | None:
        """Make the task's options from ``given`` and defaults; None: it has none. Raises pydantic's errors."""
        return self.options.model_validate(dict(given)) if self.options else None

    def evaluations(self, block: str) -> dict[str, EnvSpec]:
        """Return its environments by their names in the episodes and tables of the ``block`` of params.yaml."""
        return {f"{block}_{name}" if name else block: env for name, env in self.envs.items()}


@dataclass(frozen=True)
class TaskFamily:
    """Family of tasks made from settings. A module's ``TASK`` may be one; blocks of params.yaml then describe tasks.

    Attributes:
        settings: the model of the block's key ``custom``; its messages are ``key: given …, allowed: …``.
        make: these settings → the task; raises ``UserError``.
    """

    settings: type[BaseModel]
    make: Callable[[Any], Task]
