"""What a scripted expert hands over: one episode, as it goes into a demonstration file."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
