"""Push-T: initial states, exact and legacy resets, keypoints, and reproducible simulations."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from pipeline.tasks.loader import load_task
from pipeline.tasks.pusht import PushTOptions
from pipeline.tasks.pusht.env import (
    GOAL_POSE,
    OBSERVATION_DIM,
    PushT,
    block_keypoints,
    coverage,
    initial_state,
    observe,
)

FREE = np.array([100.0, 100.0, 300.0, 250.0, 1.0])  # the agent touches nothing
OVERLAPPING = np.array([300.0, 260.0, 300.0, 250.0, 1.0])


def wander(seed: int, steps: int) -> np.ndarray:
    """Return targets (steps, 2) that make the agent hit the block."""
    return np.random.default_rng(seed).uniform(150, 350, (steps, 2))


def run(env: PushT, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
    env.reset(state)
    return np.array([[*step.observation, step.score] for step in map(env.step, actions)])


def test_initial_states_match_the_published_generator() -> None:
    # the initial state of diffusion_policy's pusht runner; numpy has frozen RandomState's stream
    np.testing.assert_allclose(initial_state("b", 100000), [235, 124, 335, 128, -0.9049274284], rtol=1e-9)
    for name, low, high in (("a", 200, 300), ("b", 100, 400)):
        states = np.stack([initial_state(name, seed) for seed in range(100000, 100500)])
        assert states[:, 2:4].min() >= low and states[:, 2:4].max() < high
        assert states[:, 2:4].max() - states[:, 2:4].min() > 0.95 * (high - low)
        assert states[:, :2].min() >= 50 and states[:, :2].max() < 450


def test_exact_reset_places_the_block_and_legacy_moves_it() -> None:
    env = PushT()
    # without contact or motion, the physics step of the reset changes nothing
    np.testing.assert_allclose(env.reset(FREE, "exact"), FREE, rtol=0, atol=1e-9)
    legacy = env.reset(FREE, "legacy")
    assert np.linalg.norm(legacy[2:4] - FREE[2:4]) > 10
    assert legacy[4] == pytest.approx(FREE[4], abs=1e-12)
    # the legacy reset rotates the block about its centre of mass, which stays where it is at angle 0
    centre = np.array(env._env.block.center_of_gravity)
    cos, sin = np.cos(FREE[4]), np.sin(FREE[4])
    np.testing.assert_allclose(legacy[2:4] + [[cos, -sin], [sin, cos]] @ centre, FREE[2:4] + centre, atol=1e-9)


def test_legacy_reset_matches_gym_pusht() -> None:
    env, reference = PushT(), PushT()._env
    expected, _ = reference.reset(options={"reset_to_state": FREE})
    np.testing.assert_array_equal(env.reset(FREE, "legacy"), expected)


def test_steps_match_gym_pusht_exactly() -> None:
    env = PushT()
    reference = gymnasium.make("gym_pusht/PushT-v0", obs_type="state").unwrapped
    solved = np.array([100, 100, 256 - 31.8, 256 - 45 + 31.8, np.pi / 4])  # legacy turns it about its centre of mass
    scores = []
    for state in (*(initial_state("b", seed) for seed in range(100000, 100004)), solved):
        env.reset(state, "legacy")
        reference.reset(options={"reset_to_state": state})
        for action in wander(0, 60):
            step, expected = env.step(action), reference.step(action)
            np.testing.assert_array_equal(step.observation, expected[0])
            assert step.score == pytest.approx(expected[1], abs=1e-12)
            assert step.success == expected[2]
            scores.append(step.score)
    assert max(scores) == 1.0


def test_one_physics_step_pushes_an_overlapped_block_aside() -> None:
    moved = PushT().reset(OVERLAPPING) - OVERLAPPING
    assert 0 < np.linalg.norm(moved[2:4]) < 15


def test_unknown_reset_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'best'.*exact"):
        PushT().reset(FREE, "best")  # type: ignore[arg-type]


def test_episode_ends_by_success_or_after_max_steps() -> None:
    env = PushT(max_steps=3)
    env.reset(FREE)
    steps = [env.step(FREE[:2]) for _ in range(3)]
    assert [step.done for step in steps] == [False, False, True] and not steps[-1].success
    env.reset(np.array([100, 100, 256, 256, np.pi / 4]))
    solved = env.step(np.array([100, 100]))
    assert solved.done and solved.success and solved.score == 1.0
    env.reset(np.array([100, 100, 256 + 6, 256, np.pi / 4]))
    close = env.step(np.array([100, 100]))
    assert not close.success and 0.5 < close.score < 1.0


def test_coverage_and_score_match_gym_pusht() -> None:
    env, generator = PushT(), np.random.default_rng(0)
    near = np.array([100, 100, *GOAL_POSE]) + generator.normal(size=(40, 5)) * [0, 0, 3, 3, 0.1]
    around = np.array([100, 100, *GOAL_POSE]) + generator.normal(size=(40, 5)) * [0, 0, 40, 40, 3]
    solved = np.array([[100, 100, *GOAL_POSE]])
    shares = []
    for state in np.concatenate([near, around, solved]):
        env.reset(state)
        score = env.step(state[:2]).score
        block = env._env.block
        shares.append(env._env._get_coverage())
        assert coverage((*block.position, block.angle)) == pytest.approx(shares[-1], abs=1e-12)
        assert score == pytest.approx(min(shares[-1] / 0.95, 1.0), abs=1e-12)
    assert min(shares) == 0.0 and max(shares) == pytest.approx(1.0) and np.ptp(shares[:40]) > 0.2


@pytest.mark.parametrize("reused", [False, True])
def test_simulations_are_independent_and_reset_clears_all_state(reused: bool) -> None:
    actions, state = wander(0, 40), initial_state("b", 100003)
    alone = run(PushT(), state, actions)
    assert np.ptp(alone[:, 2]) > 1, "the block was pushed"
    env, other = PushT(), PushT()
    if reused:
        run(env, initial_state("b", 7), wander(1, 25))
    env.reset(state)
    other.reset(initial_state("a", 8))
    beside = []
    for action, elsewhere in zip(actions, wander(2, 40), strict=True):
        step = env.step(action)
        beside.append([*step.observation, step.score])
        other.step(elsewhere)
    np.testing.assert_array_equal(np.array(beside), alone)


def test_episode_replays_exactly_in_a_fresh_process() -> None:
    program = f"""
import sys; sys.path[:0] = {sys.path!r}
from {__name__} import PushT, initial_state, run, wander
sys.stdout.write(run(PushT(), initial_state("b", 100003), wander(0, 60)).tobytes().hex())
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, encoding="utf-8").stdout
    assert bytes.fromhex(output) == run(PushT(), initial_state("b", 100003), wander(0, 60)).tobytes()


def test_rendering_does_not_change_the_simulation() -> None:
    actions, env = wander(0, 20), PushT(frame_size=96)
    expected = run(env, FREE, actions)
    env.reset(FREE)
    frames, seen = [], []
    for action in actions:
        step = env.step(action)
        seen.append([*step.observation, step.score])
        frames.append(env.render())
    np.testing.assert_array_equal(np.array(seen), expected)
    assert frames[0].shape == (96, 96, 3) and frames[0].dtype == np.uint8
    assert (frames[0] != frames[-1]).any()


def test_keypoints_match_gym_pusht() -> None:
    env = PushT()
    for seed in range(100000, 100010):
        env.reset(initial_state("b", seed))
        block = env._env.block
        expected = env._env.get_keypoints(env._env._block_shapes)
        np.testing.assert_allclose(block_keypoints(np.array([*block.position, block.angle])), expected, atol=1e-9)


def test_observation_kinds_have_their_values_and_dimensions() -> None:
    states = np.stack([initial_state("b", seed) for seed in range(6)]).reshape(2, 3, 5)
    for kind, dimension in OBSERVATION_DIM.items():
        observed = observe(states, kind)
        assert observed.shape == (2, 3, dimension) and observed.dtype == np.float32
        np.testing.assert_array_equal(observed[1, 2], observe(states[1, 2], kind))
        # a full turn is the same pose
        np.testing.assert_allclose(observe(states + np.array([0, 0, 0, 0, 2 * np.pi]), kind), observed, atol=1e-4)
    np.testing.assert_allclose(observe(FREE, "pose"), [100, 100, 300, 250, np.cos(1), np.sin(1)], rtol=1e-6)
    np.testing.assert_allclose(
        observe(FREE, "keypoints"), [100, 100, *block_keypoints(FREE[2:]).reshape(-1)], rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"'image'.*agent"):
        observe(FREE, "image")  # type: ignore[arg-type]


def test_evaluation_gives_reset_arguments_and_step_limit() -> None:
    described = load_task("pusht").envs["a"].factory(PushTOptions(reset_order="legacy"), max_steps=2)
    arguments = described.reset_arguments(100001)
    np.testing.assert_array_equal(arguments["state"], initial_state("a", 100001))
    assert arguments["order"] == "legacy"
    env = described.make_env()
    env.reset(**arguments)
    assert [env.step(np.array([256.0, 256.0])).done for _ in range(2)] == [False, True]
