"""Training windows cut from demonstrations: a history of observations and the chunk of actions that follows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Windows:
    """Row indices into the concatenated demonstrations; no window reaches across an episode's end.

    Attributes:
        observation: (W, n_obs_steps) int64, oldest first; before an episode's start the first row repeats.
        action: (W, horizon) int64; past an episode's end the last row repeats (hold still).
        episode: (W,) int64, the episode of each window.
    """

    observation: NDArray[np.int64]
    action: NDArray[np.int64]
    episode: NDArray[np.int64]


def cut_windows(episode_ends: NDArray[np.int64], n_obs_steps: int, horizon: int) -> Windows:
    """One window for each row t of the demonstrations, whose episodes end before the rows ``episode_ends`` (E,).

    The observations are those of rows t − n_obs_steps + 1 … t, the actions those of rows t … t +
    horizon − 1, so that the first action answers the newest observation. The repeated last action fills up
    to horizon − 1 places: the policy is asked for a whole prediction in an episode's last steps too.
    """
    starts = np.concatenate([[0], episode_ends[:-1]])
    lengths = episode_ends - starts
    episode = np.repeat(np.arange(len(episode_ends)), lengths)
    first, last = starts[episode][:, None], episode_ends[episode][:, None] - 1
    rows = np.arange(episode_ends[-1])[:, None]
    observation = np.maximum(rows + np.arange(1 - n_obs_steps, 1), first)
    action = np.minimum(rows + np.arange(horizon), last)
    return Windows(observation.astype(np.int64), action.astype(np.int64), episode.astype(np.int64))
