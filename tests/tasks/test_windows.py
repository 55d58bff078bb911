"""Windows never reach across an episode's end."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tasks.windows import cut_windows


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 4), st.integers(1, 17))
def test_windows_stay_in_their_episode_and_pad_with_its_ends(lengths: list[int], observed: int, predicted: int) -> None:
    ends = np.cumsum(lengths).astype(np.int64)
    windows = cut_windows(ends, observed, predicted)
    rows = int(ends[-1])
    assert windows.observation.shape == (rows, observed)
    assert windows.action.shape == (rows, predicted)
    assert np.bincount(windows.episode).tolist() == lengths
    for row in range(rows):
        episode = int(np.searchsorted(ends, row, side="right"))
        first, last = int(ends[episode]) - lengths[episode], int(ends[episode]) - 1
        assert windows.episode[row] == episode
        assert windows.observation[row].tolist() == [max(first, row - back) for back in range(observed - 1, -1, -1)]
        assert windows.action[row].tolist() == [min(last, row + ahead) for ahead in range(predicted)]


def test_action_window_starts_at_the_newest_observation() -> None:
    windows = cut_windows(np.array([3, 5]), n_obs_steps=2, horizon=3)
    assert windows.observation.tolist() == [[0, 0], [0, 1], [1, 2], [3, 3], [3, 4]]
    assert windows.action.tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]]
