"""Scripted experts for Lift, Can and Square: each solves its task, reproducibly from the seed."""

import numpy as np
import pytest

from pipeline.experts.registry import expert
from pipeline.tasks.robomimic.actions import policy_actions
from pipeline.tasks.robomimic.env import Robomimic

SEED = 300_000


@pytest.mark.parametrize(("task", "observed", "state"), [("lift", 19, 32), ("can", 23, 71), ("square", 23, 45)])
def test_expert_solves_its_task_and_repeats_from_the_seed(task: str, observed: int, state: int) -> None:
    episode = expert(task).demonstrate(SEED)
    assert episode.success
    assert episode.score == 1.0
    steps = len(episode.actions)
    assert episode.actions.shape == (steps, 7)
    assert episode.observations.shape == (steps, observed)
    assert episode.states is not None
    assert episode.states.shape == (steps, state)
    assert all(np.isfinite(rows).all() for rows in (episode.actions, episode.observations, episode.states))
    assert set(episode.actions[:, 6]) <= {-1.0, 1.0}
    assert "<mujoco" in episode.extras["model_file"]

    other = expert(task).demonstrate(SEED + 1)
    assert not np.array_equal(other.states[0], episode.states[0])
    again = expert(task).demonstrate(SEED)
    np.testing.assert_array_equal(again.actions, episode.actions)
    np.testing.assert_array_equal(again.states, episode.states)


def test_the_recorded_actions_alone_solve_the_task() -> None:
    episode = expert("lift").demonstrate(SEED)
    env = Robomimic("lift")
    env.reset(seed=SEED)
    # converting a rotation changes its last bits, hence the tolerance
    for action, following in zip(policy_actions(episode.actions[:-1]), episode.observations[1:], strict=True):
        transition = env.step(action)
        np.testing.assert_allclose(transition.observation, following, atol=1e-6)
    assert transition.success
