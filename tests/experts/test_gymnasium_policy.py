"""A policy with ``get_action`` as an expert, and the LeRobotDataset of its episodes."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.experts.registry import expert
from pipeline.tasks.custom.env import GymnasiumEnv
from pipeline.tasks.custom.settings import Environment
from pipeline.tasks.download import fetch
from pipeline.tasks.loader import load_task
from pipeline.utils.errors import UserError
from tests.tasks.custom.test_env import MADE

SEEDS = (3, 4, 5)


class Walker:
    """Goes to the goal of ``Made``."""

    def get_action(self, observation: NDArray[np.float64]) -> NDArray[np.float64]:
        return 3 * np.sign(observation[:1] - observation[1:])


def custom(path: Path, noise: float = 0.1) -> dict[str, object]:
    source = {"path": str(path), "observation": {"observation.state": 2}, "action": {"action": 1}}
    policy = {"policy": f"{__name__}:Walker", "action_noise": noise}
    return {"environment": MADE, "expert": policy, "datasets": {"made": source}}


def test_episode_is_determined_by_its_seed_and_replays_from_its_actions(tmp_path: Path) -> None:
    found = expert("custom", custom(tmp_path))
    episode, again, other = (found.demonstrate(seed) for seed in (3, 3, 4))
    assert episode.success and episode.score == 1
    np.testing.assert_array_equal(episode.actions, again.actions)
    assert episode.observations[0, 0] != other.observations[0, 0]
    env = GymnasiumEnv(Environment.model_validate(MADE), 40)
    replayed = [env.reset(3)]
    for action in episode.actions:
        assert action.dtype == np.float32 and abs(action[0]) <= 1
        replayed.append((last := env.step(action)).observation)
    assert last.done and last.success
    np.testing.assert_array_equal(np.stack(replayed[:-1]), episode.observations)


def test_noise_changes_the_executed_actions(tmp_path: Path) -> None:
    clean, noisy = (expert("custom", custom(tmp_path, noise)).demonstrate(3).actions for noise in (0.0, 1.5))
    assert set(np.abs(clean.ravel())) == {1.0}
    assert len(set(noisy.ravel())) > 2 or len(noisy) != len(clean)


def test_dataset_round_trip_and_equal_episodes_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        found = expert("custom", custom(tmp_path))
        episodes = [found.demonstrate(seed) for seed in SEEDS]
        found.write(tmp_path / name, episodes)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    task = load_task("custom", custom(tmp_path / "one.zip"))
    read = task.datasets["made"].read(fetch("made", task.datasets["made"], tmp_path / "fetched"))
    np.testing.assert_array_equal(read.action, np.concatenate([episode.actions for episode in episodes]))
    np.testing.assert_array_equal(read.state, np.concatenate([e.observations.astype(np.float32) for e in episodes]))
    assert list(read.episode_ends) == list(np.cumsum([len(episode.actions) for episode in episodes]))


def test_unimportable_policy_is_refused_in_one_line(tmp_path: Path) -> None:
    wrong = custom(tmp_path) | {"expert": {"policy": "nowhere.at_all:Policy"}}
    with pytest.raises(UserError, match=r"given 'nowhere\.at_all:Policy', which cannot be imported"):
        expert("custom", wrong).demonstrate(3)
    without = {key: value for key, value in custom(tmp_path).items() if key != "expert"}
    with pytest.raises(UserError, match=r"--task: given 'custom', allowed: .*, a block with custom\.expert"):
        expert("custom", without)
