"""Cut windows from demonstrations: a history of observations and the following sequence of actions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.demonstrations import Demonstrations
from pipeline.utils.errors import UserError


@dataclass(frozen=True)
class Windows:
    """Row indices into the concatenated demonstrations; no window crosses an episode's end.

    Attributes:
        observation: (W, n_obs_steps) int64, oldest first; before an episode's start the first row repeats.
        action: (W, horizon) int64; past an episode's end the last row repeats (hold still).
        episode: (W,) int64, the episode of each window.
    """

    observation: NDArray[np.int64]
    action: NDArray[np.int64]
    episode: NDArray[np.int64]


def cut_windows(episode_ends: NDArray[np.int64], n_obs_steps: int, horizon: int, *, unpadded: bool = False) -> Windows:
    """Cut one window for each row t of the demonstrations, whose episodes end before the rows ``episode_ends`` (E,).

    Observations are rows t − n_obs_steps + 1 … t, actions are rows t … t + horizon − 1, so that the first action
    answers the newest observation. The last action of an episode is repeated up to horizon − 1 times, since the policy
    also predicts whole sequences in an episode's last steps.

    Args:
        unpadded: whether to leave out windows with repeated rows.
    """
    starts = np.concatenate([[0], episode_ends[:-1]])
    lengths = episode_ends - starts
    episode = np.repeat(np.arange(len(episode_ends)), lengths)
    first, last = starts[episode][:, None], episode_ends[episode][:, None] - 1
    rows = np.arange(episode_ends[-1])[:, None]
    observation = np.maximum(rows + np.arange(1 - n_obs_steps, 1), first)
    action = np.minimum(rows + np.arange(horizon), last)
    kept = np.ones(len(rows), dtype=bool)
    if unpadded:
        kept = ((rows - n_obs_steps + 1 >= first) & (rows + horizon - 1 <= last))[:, 0]
    return Windows(*(array[kept].astype(np.int64) for array in (observation, action, episode)))


@dataclass(frozen=True)
class ReportedWindows:
    """Windows of the episodes on which an offline task's results are reported; nothing is chosen on them.

    Only windows without repeated actions and with an action before them, in raw units.

    Attributes:
        state: (W, To, S), oldest first. action: (W, Tp, A). previous: (W, A), the action before the window's first.
        episode, row: (W,) int64, indices of the episode and of the step, in the order of the demonstrations.
    """

    state: NDArray[np.float32]
    action: NDArray[np.float32]
    previous: NDArray[np.float32]
    episode: NDArray[np.int64]
    row: NDArray[np.int64]


def cut_reported(
    demonstrations: Demonstrations, episodes: NDArray[np.int64], n_obs_steps: int, horizon: int
) -> ReportedWindows:
    """Cut the windows of ``episodes`` (indices) as ``cut_windows`` does.

    Raises:
        UserError: an episode is too short for a window.
    """
    ends = demonstrations.episode_ends
    windows = cut_windows(ends, n_obs_steps, horizon)
    rows, starts = np.arange(ends[-1]), np.concatenate([[0], ends[:-1]])
    whole = (rows > starts[windows.episode]) & (rows + horizon <= ends[windows.episode])
    for episode in episodes:
        length = ends[episode] - starts[episode]
        if length <= horizon:
            raise UserError(
                f"data.horizon: given {horizon}, allowed: below the {length} steps of episode {episode}, which is held "
                "out to be reported on"
            )
    kept = np.isin(windows.episode, episodes) & whole
    return ReportedWindows(
        state=demonstrations.state[windows.observation[kept]],
        action=demonstrations.action[windows.action[kept]],
        previous=demonstrations.action[rows[kept] - 1],
        episode=windows.episode[kept],
        row=rows[kept].astype(np.int64),
    )
