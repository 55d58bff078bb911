"""Franka Kitchen: observation, control and scoring of the reference, and reproducible episodes."""

import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.tasks.datasets import REPOSITORY
from pipeline.tasks.kitchen.env import (
    ACTION_DIM,
    CONTROL_SECONDS,
    FRAME_SKIP,
    GOALS,
    MAX_VELOCITY,
    NOISE_AMPLITUDE,
    Kitchen,
    observe,
)
from pipeline.tasks.loader import load_task
from pipeline.tasks.vector import ChunkedWorkers

Array = NDArray[np.float64]


@cache
def kitchen() -> Kitchen:
    """Return a kitchen that all tests share, in any state."""
    return Kitchen()


@cache
def exact_kitchen() -> Kitchen:
    """Return a shared kitchen without sensor noise."""
    return Kitchen(noise_ratio=0.0)


def wander(seed: int, steps: int) -> Array:
    """Return actions (steps, 9) that swing the arm, also into the furniture."""
    drift = np.random.RandomState(seed).uniform(-0.15, 0.15, (steps, ACTION_DIM))
    return np.clip(np.cumsum(drift, axis=0), -1, 1)


def run(env: Kitchen, seed: int, actions: Array) -> Array:
    first = env.reset(seed=seed)
    return np.array([[*first, 0.0], *([*step.observation, step.score] for step in map(env.step, actions))])


def placed(env: Kitchen, **elements: float) -> Array:
    """Reset with the elements' joints moved a share of the way to their goals (1: fully); return the positions."""
    positions, velocities = env._start
    positions = positions.copy()
    for name, share in elements.items():
        joints, goal = GOALS[name.replace("_", " ")]
        positions[list(joints)] += share * (goal - positions[list(joints)])
    env.reset(state=(positions, velocities))
    return positions


def test_joint_layout_matches_the_reference() -> None:
    env = kitchen()
    model = env.simulation.model
    names = [model.joint(i).name for i in range(model.njnt)]
    address = {name: int(model.joint(name).qposadr[0]) for name in names}
    assert [address[f"robot:panda0_joint{i}"] for i in range(1, 8)] == list(range(7))
    assert [address[f"robot:panda0_finger_joint{i}"] for i in (1, 2)] == [7, 8]
    joints = {"bottom burner": 11, "top burner": 15, "light switch": 17, "slide cabinet": 19}
    joints |= {"hinge cabinet": 20, "microwave": 22, "kettle": 23}
    assert {name: indices[0] for name, (indices, _) in GOALS.items()} == joints
    first = {"knob_Joint_2": 11, "knob_Joint_4": 15, "light_switch": 17, "slide_cabinet": 19}
    first |= {"left_hinge_cabinet": 20, "right_hinge_cabinet": 21, "microwave": 22, "kettle": 23}
    assert {name: address[name] for name in first} == first
    observation = env.reset(seed=0)
    assert observation.shape == (60,) and observation.dtype == np.float64
    assert (observation[30:] == 0).all()
    assert (np.abs(observation[:30] - env._start[0]) <= 0.1 * NOISE_AMPLITUDE).all()
    encoded = observe(np.stack([observation, observation]))
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, np.stack([observation, observation]).astype(np.float32))


def test_goals_noise_and_limits_match_gymnasium_robotics() -> None:
    from gymnasium_robotics.envs.franka_kitchen import kitchen_env

    robot = kitchen().simulation.robot_env
    assert GOALS.keys() == kitchen_env.OBS_ELEMENT_GOALS.keys()
    for name, (joints, goal) in GOALS.items():
        np.testing.assert_array_equal(joints, kitchen_env.OBS_ELEMENT_INDICES[name])
        np.testing.assert_array_equal(goal, kitchen_env.OBS_ELEMENT_GOALS[name])
    # its noise lacks the last column: it counts the kettle's velocities, one fewer than its positions
    np.testing.assert_array_equal(NOISE_AMPLITUDE[:29], robot.robot_pos_noise_amp)
    assert len(NOISE_AMPLITUDE) == 30
    assert robot.frame_skip == FRAME_SKIP and robot.dt == pytest.approx(CONTROL_SECONDS)
    np.testing.assert_array_equal(robot.act_rng, np.full(9, MAX_VELOCITY))


def test_control_matches_gymnasium_robotics_without_noise() -> None:
    env = Kitchen(noise_ratio=0.0)
    own = Kitchen(noise_ratio=0.0).simulation
    own.reset(seed=0)
    own.robot_env.robot_noise_ratio = 0.0
    own.robot_env._get_obs()
    actions = wander(3, 60) * 1.5  # also beyond the limits
    mine = run(env, 0, actions)[1:, :30]
    theirs = []
    for action in actions:
        own.step(action)
        theirs.append(own.data.qpos.copy())
    np.testing.assert_array_equal(mine, np.array(theirs))
    assert np.ptp(mine[:, :7], axis=0).max() > 1


def test_sensor_noise_is_uniform_and_affects_servo_targets() -> None:
    env = kitchen()
    errors = np.array([env.reset(seed=seed)[:30] - env._start[0] for seed in range(200)])
    assert (np.abs(errors) <= 0.1 * NOISE_AMPLITUDE).all()
    np.testing.assert_allclose(errors.std(axis=0), 0.1 * NOISE_AMPLITUDE / np.sqrt(3), rtol=0.2)
    sensed = env.reset(seed=5)
    env.step(np.zeros(ACTION_DIM))
    np.testing.assert_allclose(env.simulation.data.ctrl[:7], sensed[:7], rtol=0, atol=1e-15)


def test_episodes_do_not_depend_on_earlier_episodes() -> None:
    actions = {seed: wander(seed, 40) for seed in (1, 2, 3)}
    fresh = Kitchen()
    first = {seed: run(fresh, seed, actions[seed]) for seed in (1, 2, 3)}
    used = kitchen()
    run(used, 9, wander(9, 17))
    for seed in (3, 1, 2):
        np.testing.assert_array_equal(run(used, seed, actions[seed]), first[seed])
    assert not np.array_equal(first[1][0], first[2][0]), "the noise depends on the seed"


def test_episode_replays_exactly_in_a_fresh_process() -> None:
    program = "from tests.tasks.test_kitchen import *\nprint(run(Kitchen(), 4, wander(4, 20)).tobytes().hex())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stderr == ""
    assert bytes.fromhex(done.stdout) == run(kitchen(), 4, wander(4, 20)).tobytes()


def test_stored_state_and_actions_reproduce_later_states_exactly() -> None:
    env, actions = exact_kitchen(), wander(0, 120)
    env.reset()
    states = [env.state()]
    contacts = 0
    for action in actions:
        env.step(action)
        contacts += any(
            c.geom1 > 0 and env.simulation.model.geom_bodyid[c.geom1] > 1 for c in env.simulation.data.contact
        )
        states.append(env.state())
    assert contacts, "the arm touched something"
    for start in (0, 50, 110):
        env.reset(state=states[start])
        for action, expected in zip(actions[start:], states[start + 1 :], strict=True):
            env.step(action)
            for mine, stored in zip(env.state(), expected, strict=True):
                np.testing.assert_array_equal(mine, stored)


def test_noisy_demonstration_replays_without_its_seed() -> None:
    env, actions = kitchen(), wander(6, 60).astype(np.float32)
    observations, positions = [env.reset(seed=11)], [env.simulation.data.qpos.copy()]
    for action in actions:
        observations.append(env.step(action).observation)
        positions.append(env.simulation.data.qpos.copy())
    stored = np.array(observations[:-1], dtype=np.float32)  # as in a public file
    replayed = env.replay(stored, actions)
    # files round positions to float32, 1e-7 of a radian, and contacts amplify the error
    np.testing.assert_allclose(replayed, positions, rtol=0, atol=1e-3)
    env.reset(seed=12)
    for action in actions:
        env.step(action)
    assert np.abs(env.simulation.data.qpos - positions[-1])[:7].max() > 5e-3, "noise alone leads elsewhere"


@pytest.mark.parametrize("element", sorted(GOALS))
def test_element_is_completed_within_the_goal_distance(element: str) -> None:
    env = exact_kitchen()
    joints, goal = GOALS[element]
    distance = np.linalg.norm(env._start[0][list(joints)] - goal)
    assert distance > 0.35, "the start is not the goal"
    for left, expected in ((0.31, set()), (0.29, {element})):
        placed(env, **{element.replace(" ", "_"): 1 - left / distance})
        assert env._at_goal() == expected


def test_completed_elements_stay_completed_and_four_end_the_episode() -> None:
    env = exact_kitchen()
    data = env.simulation.data
    start = placed(env, microwave=1.0)
    assert env.completed == frozenset(), "nothing is completed before the first step"
    assert env.step(np.zeros(ACTION_DIM)).score == 0.25
    data.qpos[:] = env._start[0]  # closes the microwave
    assert env.step(np.zeros(ACTION_DIM)).score == 0.25
    data.qpos[:] = start  # opens it again
    assert env.step(np.zeros(ACTION_DIM)).score == 0.25
    placed(env, microwave=1.0, slide_cabinet=1.0, hinge_cabinet=1.0, kettle=1.0)
    step = env.step(np.zeros(ACTION_DIM))
    assert step.score == 1.0 and step.success and step.done
    assert env.completed == {"microwave", "slide cabinet", "hinge cabinet", "kettle"}
    placed(env, microwave=1.0, slide_cabinet=1.0, hinge_cabinet=1.0)
    step = env.step(np.zeros(ACTION_DIM))
    assert step.score == 0.75 and not step.success and not step.done
    env.reset()
    assert env.completed == frozenset()
    assert env.step(np.zeros(ACTION_DIM)).score == 0.0


def test_evaluation_in_workers_equals_in_process_and_ends_after_max_steps() -> None:
    described = load_task("kitchen").envs[""].factory(max_steps=6)
    results = []
    for workers in (0, 1):
        with ChunkedWorkers(described.make_env, workers) as simulations:
            first = simulations.reset({0: described.reset_arguments(100000)})[0]
            simulations.begin_chunks({0: wander(0, 8)})
            results.append((first, simulations.finish_chunks()[0]))
    (first, here), (first_there, there) = results
    assert len(here.observations) == 6 and here.done and not here.success
    np.testing.assert_array_equal(first_there, first)
    np.testing.assert_array_equal(there.observations, here.observations)


def test_only_rendering_needs_opengl() -> None:
    program = (
        "import sys\nimport numpy as np\nfrom pipeline.tasks.kitchen.env import Kitchen\n"
        "env = Kitchen(frame_size=48)\nenv.reset(seed=0)\nenv.step(np.zeros(9))\n"
        "print('OpenGL' in sys.modules)\n"
        "try: import mujoco.egl; mujoco.egl.GLContext(8, 8).free()\n"
        "except Exception: sys.exit('no OpenGL')\n"
        "frame = env.render()\nprint(frame.shape, frame.dtype, frame.std() > 10)\n"
        "env.step(np.ones(9))\nprint((env.render() != frame).any())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stdout.startswith("False\n")
    if done.stderr == "no OpenGL\n":
        pytest.skip("this machine has no EGL")
    assert done.stdout == "False\n(48, 48, 3) uint8 True\nTrue\n"
    assert done.stderr == "" and done.returncode == 0
