"""Robomimic's tasks: observations in the public order, reproducible episodes, replays of files."""

import subprocess
import sys
from textwrap import dedent
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest

from pipeline.tasks.robomimic import simulator
from pipeline.tasks.robomimic.actions import absolute_actions, file_actions, policy_actions
from pipeline.tasks.robomimic.env import (
    ACTION_DIM,
    MAX_STEPS,
    OBJECT_DIM,
    OBSERVATION_DIM,
    STATE_DIM,
    Robomimic,
    observe,
    raw_observation,
)
from pipeline.tasks.robomimic.files import portable_model
from pipeline.tasks.robomimic.rotation import matrix_from_axis_angle
from pipeline.tasks.robomimic.simulator import ARMS, Task, drawing_from, env_arguments, has_egl, reset_by_seed
from pipeline.utils.code_deps import ROOT

DOWN = np.pi * np.array([np.cos(np.pi / 4), np.sin(np.pi / 4), 0.0])  # the hand points straight down, as at rest


@pytest.fixture(scope="module")
def lift() -> Robomimic:
    return Robomimic("lift")


def reach(observation: np.ndarray, seed: int = 0, steps: int = 30) -> np.ndarray:
    """Return noisy actions (steps, 10) that move down to the cube, grasp it and lift it."""
    generator = np.random.default_rng(seed)
    heights = np.interp(np.arange(steps), [0, 14, 20, 29], [0.05, 0.0, 0.0, 0.2])
    targets = observation[:3] + heights[:, None] * [0, 0, 1] + generator.normal(0, 0.002, (steps, 3))
    turns = DOWN + generator.normal(0, 0.03, (steps, 3))
    gripper = np.where(np.arange(steps) < 15, -1.0, 1.0)
    return policy_actions(np.column_stack([targets, turns, gripper]))


def run(env: Robomimic, seed: int, actions: np.ndarray) -> np.ndarray:
    """Return observation, score and the simulator's full state, before the first action and after each."""
    rows = [[*env.reset(seed=seed), 0.0, *full_state(env)]]
    for action in actions:
        step = env.step(action)
        rows.append([*step.observation, step.score, *full_state(env)])
    return np.array(rows)


def full_state(env: Robomimic) -> np.ndarray:
    data = env.simulator.env.sim.data
    return np.concatenate([env.simulator.get_state()["states"], data.qacc_warmstart])


@pytest.mark.parametrize("task", get_args(Task))
def test_dimensions_and_resets_of_every_task(task: Task) -> None:
    assert (STATE_DIM[task], OBJECT_DIM[task], ACTION_DIM[task], MAX_STEPS[task]) == {
        "lift": (19, 10, 10, 400),
        "can": (23, 14, 10, 400),
        "square": (23, 14, 10, 400),
        "transport": (59, 41, 20, 700),
    }[task]
    env = Robomimic(task, max_steps=2)
    first = env.reset(seed=100000)
    assert first.shape == (STATE_DIM[task],) and first.dtype == np.float64
    robosuite = env.simulator.env
    for arm in range(ARMS[task]):
        mine = first[OBJECT_DIM[task] + 9 * arm :][:9]
        robot = robosuite.robots[arm]
        np.testing.assert_allclose(mine[:3], robot.controller.ee_pos, atol=1e-12)
        assert np.linalg.norm(mine[3:7]) == pytest.approx(1)
        np.testing.assert_array_equal(mine[7:], robosuite.sim.data.qpos[robot._ref_gripper_joint_pos_indexes])
    hold = np.concatenate([[*first[OBJECT_DIM[task] + 9 * arm :][:3], *DOWN, -1.0] for arm in range(ARMS[task])])
    steps = [env.step(policy_actions(hold)) for _ in range(2)]
    assert [step.done for step in steps] == [False, True] and not steps[-1].success and steps[-1].score == 0
    np.testing.assert_array_equal(env.reset(seed=100000), first)
    assert not np.array_equal(env.reset(seed=100001), first)


def test_action_is_an_absolute_pose_and_minus_one_opens_the_gripper(lift: Robomimic) -> None:
    start = lift.reset(seed=1)
    target = start[10:13] + np.array([0.03, -0.02, 0.05])
    turn = np.pi * np.array([np.cos(np.pi / 4 + 0.1), np.sin(np.pi / 4 + 0.1), 0.0])  # down, and turned by 0.2 rad
    for gripper in (1.0, -1.0):
        for _ in range(20):
            observation = lift.step(policy_actions(np.array([*target, *turn, gripper]))).observation
        np.testing.assert_allclose(observation[10:13], target, atol=0.003)
        np.testing.assert_allclose(
            lift.simulator.env.robots[0].controller.ee_ori_mat, matrix_from_axis_angle(turn), atol=0.02
        )
        opening = observation[17] - observation[18]
        assert opening > 0.07 if gripper < 0 else opening < 0.02


@pytest.mark.parametrize("seed", [100000, 100001, 200000])
def test_reused_simulation_repeats_an_episode_exactly(lift: Robomimic, seed: int) -> None:
    actions = reach(lift.reset(seed=seed), seed)
    first = run(lift, seed, actions)
    run(lift, 7, actions[:17])
    with drawing_from(3):  # with another state of the global generator
        np.testing.assert_array_equal(run(lift, seed, actions), first)


def test_fresh_simulation_gives_the_same_episode_and_grasping_solves_lift(lift: Robomimic) -> None:
    actions = reach(lift.reset(seed=100003))
    lift.reset(seed=100003)
    state, model = lift.simulator.get_state()["states"], lift.simulator.get_state()["model"]
    reused = run(lift, 100003, actions)
    lift.reset(states=state, model=model)  # loads another model
    np.testing.assert_array_equal(run(lift, 100003, actions), reused)
    np.testing.assert_array_equal(run(Robomimic("lift"), 100003, actions), reused)
    assert reused[:, 19].max() == 1.0 and reused[:15, 19].max() == 0.0


def test_stored_states_and_actions_replay_to_the_stored_states(lift: Robomimic) -> None:
    actions = reach(lift.reset(seed=300000))
    lift.reset(seed=300000)
    model = portable_model(lift.simulator.get_state()["model"])
    recorded = run(lift, 300000, actions)
    n_state = len(lift.simulator.get_state()["states"])
    observed = [lift.reset(states=recorded[0, 20 : 20 + n_state], model=model)]
    states = []
    for action in actions:
        observed.append(lift.step(action).observation)
        states.append(lift.simulator.get_state()["states"])
    # tolerances in metres, radians, and per second: XML rounds the model's numbers
    np.testing.assert_allclose(observed, recorded[:, :19], rtol=0, atol=1e-3)
    np.testing.assert_allclose(states, recorded[1:, 20 : 20 + n_state], rtol=0, atol=0.01)


def test_steps_match_robosuite_exactly(lift: Robomimic) -> None:
    actions = file_actions(reach(lift.reset(seed=5)))
    ours, theirs = [], []
    env = lift.simulator.env
    reset_by_seed(lift.simulator, 5)
    for action in actions:
        env.step(action)
        ours.append(full_state(lift))
    reset_by_seed(lift.simulator, 5)
    for action in actions:
        type(env).step(env, action)
        theirs.append(full_state(lift))
    np.testing.assert_array_equal(ours, theirs)


def test_observations_match_robomimics_extraction(lift: Robomimic) -> None:
    actions = reach(lift.reset(seed=6))
    for action in actions[:20]:
        observation = lift.step(action).observation
    np.testing.assert_array_equal(raw_observation(lift.simulator.get_observation(), "lift"), observation)
    state = lift.simulator.get_state()["states"]
    np.testing.assert_array_equal(raw_observation(lift.simulator.reset_to({"states": state}), "lift"), observation)


def test_converted_relative_actions_match_robosuites_relative_controller(lift: Robomimic) -> None:
    observation = lift.reset(seed=8)
    controller = lift.simulator.env.robots[0].controller
    relative = np.array([[0.4, -0.2, 1.7, 0.3, -0.8, 0.1, -1.0], [0.1, 0, 0, 0, 0, 0, -1.0]])
    goals: list[Any] = []
    poses = []
    try:
        for action in relative:
            controller.use_delta = True
            controller.set_goal(action[:6])
            goals.append((controller.goal_pos, controller.goal_ori))
            poses.append((observation[10:13], observation[13:17]))
            controller.use_delta = False
            observation = lift.step(policy_actions(np.array([*controller.goal_pos, *DOWN, -1.0]))).observation
            controller.goal_ori = goals[-1][1]
            controller.new_update = True
    finally:
        controller.use_delta = False
    positions, quaternions = (np.array(column)[:, None] for column in zip(*poses, strict=True))
    absolute = policy_actions(absolute_actions(relative, positions, quaternions))
    for action, (position, rotation) in zip(absolute, goals, strict=True):
        np.testing.assert_allclose(action[:3], position, atol=1e-9)
        np.testing.assert_allclose(action[3:9], rotation[:2].reshape(6), atol=1e-6)  # robosuite rounds to float32


def test_global_random_state_and_mujoco_py_are_untouched(lift: Robomimic) -> None:
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random(4)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    lift.reset(seed=1)
    np.testing.assert_array_equal(np.random.random(4), expected)  # noqa: NPY002
    assert "mujoco_py" not in sys.modules


def test_simulation_does_not_import_torch_but_robomimic_still_can() -> None:
    program = """
        import sys
        from pipeline.tasks.robomimic.env import Robomimic
        Robomimic("lift").reset(seed=1)
        assert not [name for name in sys.modules if name.split(".")[0] == "torch"]
        import numpy as np
        import robomimic.utils.obs_utils as obs_utils, robomimic.utils.tensor_utils as tensor_utils
        ones = tensor_utils.to_tensor({"ones": np.ones(3)})["ones"]
        import torch
        assert isinstance(ones, torch.Tensor) and obs_utils.F.relu is torch.nn.functional.relu
    """
    subprocess.run([sys.executable, "-c", dedent(program)], cwd=ROOT, check=True)


def test_modules_imported_meanwhile_do_not_disturb_the_end_of_deferral(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(ModuleType):
        """A lazy module as some packages have it: a look at its class imports another, as a thread might."""

        @property
        def __class__(self) -> type:
            sys.modules["imported_meanwhile"] = ModuleType("imported_meanwhile")
            return ModuleType

    monkeypatch.setitem(sys.modules, "imported_meanwhile", ModuleType("imported_meanwhile"))  # to be removed at the end
    del sys.modules["imported_meanwhile"]
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    with simulator._deferred("not_installed"):
        assert "not_installed" in sys.modules
    assert "not_installed" not in sys.modules and "imported_meanwhile" in sys.modules


@pytest.mark.skipif(not has_egl(), reason="drawing without a display needs EGL")
def test_rendering_does_not_change_the_simulation() -> None:
    env = Robomimic("lift", frame_size=32)
    actions = reach(env.reset(seed=5), steps=4)
    expected = run(env, 5, actions)
    rows = [[*env.reset(seed=5), 0.0, *full_state(env)]]
    frames = [env.render()]
    for action in actions:
        step = env.step(action)
        rows.append([*step.observation, step.score, *full_state(env)])
        frames.append(env.render())
    np.testing.assert_array_equal(rows, expected)
    assert frames[0].shape == (32, 32, 3) and frames[0].dtype == np.uint8
    assert (frames[0] != frames[-1]).any()


def test_observation_kinds() -> None:
    states = np.arange(2 * 59.0).reshape(2, 59)
    assert observe(states, "state").dtype == np.float32
    np.testing.assert_array_equal(observe(states, "one_arm"), states[:, :50])
    assert OBSERVATION_DIM["transport"] == {"state": 59, "one_arm": 50}
    with pytest.raises(ValueError, match="'pose'"):
        observe(states, "pose")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Transport"):
        observe(states[:, :19], "one_arm")


def test_reset_needs_a_seed_or_a_state(lift: Robomimic) -> None:
    with pytest.raises(ValueError, match="one of them"):
        lift.reset()


def test_settings_match_the_public_files() -> None:
    arguments = env_arguments("transport")
    assert (arguments["env_name"], arguments["type"]) == ("TwoArmTransport", 1)
    assert arguments["env_kwargs"]["robots"] == ["Panda", "Panda"]
    assert arguments["env_kwargs"]["controller_configs"]["control_delta"] is False
