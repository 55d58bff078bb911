"""The Kitchen expert solves its episodes reproducibly, and stored actions replay them."""

import hashlib
from collections import Counter
from pathlib import Path

import mujoco
import numpy as np
import pytest

from pipeline.experts.arm import Arm
from pipeline.experts.episode import ExpertEpisode
from pipeline.experts.kitchen import ABOVE, BELOW, Variation, demonstrate, write
from pipeline.experts.kitchen_skills import SKILLS, hand_rotation
from pipeline.tasks.kitchen.env import ENOUGH, GOALS, MAX_STEPS, Kitchen
from pipeline.tasks.kitchen.files import read_kitchen

SEEDS = (300_000, 300_005)
SHIPPED = Path(__file__).resolve().parents[2] / "data" / "demonstrations" / "kitchen_starter.zip"


@pytest.fixture(scope="module")
def episodes() -> list[ExpertEpisode]:
    return [demonstrate(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def kitchen() -> Kitchen:
    return Kitchen()


def test_kitchen_expert_solves_its_episodes(episodes: list[ExpertEpisode]) -> None:
    for seed, episode in zip(SEEDS, episodes, strict=True):
        assert (episode.seed, episode.success, episode.score) == (seed, True, 1.0)
        steps = len(episode.actions)
        assert steps <= MAX_STEPS
        assert episode.observations.shape == (steps, 60)
        assert episode.actions.shape == (steps, 9)
        assert np.abs(episode.actions).max() <= 1


def test_kitchen_episode_is_determined_by_its_seed(episodes: list[ExpertEpisode]) -> None:
    again = demonstrate(SEEDS[0])  # after another one, in the same simulation
    np.testing.assert_array_equal(again.observations, episodes[0].observations)
    np.testing.assert_array_equal(again.actions, episodes[0].actions)


def test_written_and_read_actions_solve_the_episode_again(
    episodes: list[ExpertEpisode], kitchen: Kitchen, tmp_path: Path
) -> None:
    write(tmp_path / "kitchen.zip", episodes)
    stored = read_kitchen(tmp_path / "kitchen.zip")
    for i, seed in enumerate(SEEDS):
        kitchen.reset(seed=seed)
        for action in stored.action[stored.episode(i)]:
            transition = kitchen.step(action)
        assert transition.success


def test_task_orders_begin_below_and_all_occur() -> None:
    orders = Counter(Variation.draw(np.random.default_rng(seed)).order for seed in range(2000))
    for order in orders:
        below = [task for task in order if task in BELOW]
        above = [task for task in order if task in ABOVE]
        assert list(order) == below + above
        assert len(set(order)) == ENOUGH
    assert len(orders) == 2 * 6 + 2 * 6  # two below and two of three above; or one below and all above


@pytest.mark.parametrize("task", SKILLS)
def test_every_skill_starts_at_a_reachable_pose(task: str, kitchen: Kitchen) -> None:
    skill = SKILLS[task]
    assert task in GOALS
    kitchen.reset()
    model, data = kitchen.simulation.model, mujoco.MjData(kitchen.simulation.model)
    arm = Arm(model, "end_effector")
    arm.observe(kitchen.simulation.data.qpos)
    target, rotation = arm.site(skill.site) + skill.approach, hand_rotation(*skill.direction)

    data.qpos[:] = kitchen.simulation.data.qpos
    data.qpos[:7] = arm.solve(target, rotation, np.array(skill.posture))
    mujoco.mj_forward(model, data)

    site = data.site("end_effector")
    np.testing.assert_allclose(site.xpos, target, atol=2e-3)
    np.testing.assert_allclose(site.xmat.reshape(3, 3), rotation, atol=1e-2)
    assert (model.jnt_range[:7, 0] <= data.qpos[:7]).all() and (data.qpos[:7] <= model.jnt_range[:7, 1]).all()
    np.testing.assert_array_equal(arm.angles, kitchen.simulation.data.qpos[:7])


def test_gravity_sag_holds_the_arm_still(kitchen: Kitchen) -> None:
    """Commands raised by the sag keep simulated servos at the given angles."""
    kitchen.reset()
    model, data = kitchen.simulation.model, mujoco.MjData(kitchen.simulation.model)
    arm = Arm(model, "end_effector")
    data.qpos[:] = kitchen.simulation.data.qpos
    data.qpos[:7] = SKILLS["slide cabinet"].posture
    arm.observe(data.qpos)
    data.ctrl[:7] = arm.angles + arm.gravity_sag()
    mujoco.mj_step(model, data, nstep=200)
    np.testing.assert_allclose(data.qpos[:7], arm.angles, atol=1e-4)


@pytest.mark.skipif(not SHIPPED.exists(), reason="the starter demonstrations are not made yet")
class TestShipped:
    """The set in ``data/``."""

    def test_shipped_set_is_small_complete_and_intact(self) -> None:
        assert SHIPPED.stat().st_size <= 3_000_000
        digest, name = SHIPPED.with_name(f"{SHIPPED.name}.sha256").read_text(encoding="utf-8").split()
        assert (digest, name) == (hashlib.sha256(SHIPPED.read_bytes()).hexdigest(), SHIPPED.name)
        stored = read_kitchen(SHIPPED)
        assert stored.n_episodes >= 80
        assert np.diff(stored.episode_ends, prepend=0).max() <= MAX_STEPS
        assert np.abs(stored.action).max() <= 1

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_replayed_episode_completes_four_elements(self, kitchen: Kitchen, share: float) -> None:
        stored = read_kitchen(SHIPPED)
        steps = stored.episode(round(share * (stored.n_episodes - 1)))
        positions = kitchen.replay(stored.state[steps], stored.action[steps])
        assert len(kitchen.completed) == ENOUGH
        np.testing.assert_allclose(positions[:-1, :7], stored.state[steps, :7], atol=0.0101)  # the sensors' error
