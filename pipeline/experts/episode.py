"""What a scripted expert is, and what it hands over: one episode, as it goes into a demonstration file."""

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
        actions: (T, A), as the public file of the task stores them.
        success: whether the episode is worth keeping as a demonstration.
        score: 0 to 1, as the task scores an episode.
        states: (T, …) full simulator state before each action, for formats that store it.
        extras: what else a format stores per episode, by name (the simulator's model as XML).
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
    """How demonstrations of a task are made and stored.

    Attributes:
        demonstrate: seed → the expert's episode, solved or not; a function of the seed alone, and picklable.
        write: (path, episodes) → a file in the public format, the same bytes for the same episodes.
    """

    demonstrate: Callable[[int], ExpertEpisode]
    write: Callable[[Path, Sequence[ExpertEpisode]], None]
