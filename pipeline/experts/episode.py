"""The interface of a scripted expert, and its result: one episode for a demonstration file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ExpertEpisode:
    """One episode of T control steps.

    Attributes:
        seed: of the episode; draws the initial state and the expert's variation.
        observations: (T, S) float64, the raw observation before each action.
        actions: (T, A), in the form of the task's public file.
        success: whether to keep the episode as a demonstration.
        score: the task's score of the episode, 0 to 1.
        states: (T, …) full simulator state before each action, for formats that store it.
        extras: further data of an episode that a format stores, by name (the simulator's model as XML).
    """

    seed: int
    observations: NDArray[np.float64]
    actions: NDArray[np.floating]
    success: bool
    score: float
    states: NDArray[np.float64] | None = None
    extras: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Expert:
    """Functions that make and store demonstrations of a task.

    Attributes:
        demonstrate: seed → the expert's episode, solved or not; depends only on the seed, and is picklable.
        write: (path, episodes) → a file in the public format; the same episodes give the same bytes.
    """

    demonstrate: Callable[[int], ExpertEpisode]
    write: Callable[[Path, Sequence[ExpertEpisode]], None]
