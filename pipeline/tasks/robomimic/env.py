"""Simulate Robomimic's Lift, Can, Square and Transport (Mandlekar et al., CoRL 2021) with low-dimensional observations.

Raw observation, in the public order: ``object``, then for each arm the position of its grip site (3), the quaternion
of its hand (4; x, y, z, w) and the positions of its two fingers (2), in metres. ``object`` holds for Lift the cube's
pose and its offset to the gripper (10); for Can and Square the pose of the can or nut in the world and in the gripper's
frame (14); for Transport the poses of hammer, trash and lid, the bins' positions, four offsets and two flags (41).

Action of a policy, 10 per arm: the grip site's target position (3) in metres, its target rotation as six numbers (see
``rotation.py``), both in the world's frame, and the gripper, -1 open to +1 closed; held for 0.05 s.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.robomimic.actions import POLICY_ACTION, file_actions
from pipeline.tasks.robomimic.camera import Camera
from pipeline.tasks.robomimic.simulator import (
    ARM_OBSERVATION,
    ARMS,
    Task,
    make_simulator,
    reset_by_seed,
    reset_to_state,
)
from pipeline.tasks.vector import Transition

ObservationKind = Literal["state", "one_arm"]

MAX_STEPS: dict[Task, int] = {"lift": 400, "can": 400, "square": 400, "transport": 700}
OBJECT_DIM: dict[Task, int] = {"lift": 10, "can": 14, "square": 14, "transport": 41}
ARM_DIM = sum(ARM_OBSERVATION.values())
STATE_DIM: dict[Task, int] = {task: OBJECT_DIM[task] + ARM_DIM * ARMS[task] for task in get_args(Task)}
OBSERVATION_DIM: dict[Task, dict[ObservationKind, int]] = {
    "lift": {"state": STATE_DIM["lift"]},
    "can": {"state": STATE_DIM["can"]},
    "square": {"state": STATE_DIM["square"]},
    "transport": {"state": STATE_DIM["transport"], "one_arm": OBJECT_DIM["transport"] + ARM_DIM},
}
ACTION_DIM: dict[Task, int] = {task: POLICY_ACTION * ARMS[task] for task in get_args(Task)}


def observation_keys(task: Task) -> dict[str, int]:
    """Return robomimic's observation keys of ``task`` with their lengths, in the order of the raw observation."""
    arms = {f"robot{arm}_{key}": size for arm in range(ARMS[task]) for key, size in ARM_OBSERVATION.items()}
    return {"object": OBJECT_DIM[task]} | arms


class Robomimic:
    """One simulation of a task. Score and success are 1 if the state reached solves the task, else 0."""

    def __init__(self, task: Task, max_steps: int | None = None, frame_size: int = 256) -> None:
        """Make the simulation.

        Args:
            task: the task to simulate.
            max_steps: control steps after which an episode ends; None: as in robomimic's rollouts.
            frame_size: width and height of rendered frames in pixels.
        """
        self._simulator = make_simulator(task)
        self._camera = Camera(self._simulator, frame_size)
        self._task: Task = task
        self._max_steps = MAX_STEPS[task] if max_steps is None else max_steps
        self._steps = 0

    @property
    def simulator(self) -> Any:
        """The simulator as robomimic makes it (``EnvRobosuite``)."""
        return self._simulator

    def reset(
        self, seed: int | None = None, states: NDArray[np.float64] | None = None, model: str | None = None
    ) -> NDArray[np.float64]:
        """Start an episode and return its first observation (S,), float64.

        Args:
            seed: draws the initial state, and objects' sizes if the task draws them.
            states: instead of a seed, the simulator's flattened state as files store it (time, positions, velocities).
            model: the MuJoCo XML that belongs to ``states``; None: the model of seed 0.

        Raises:
            ValueError: neither or both of ``seed`` and ``states`` are given.
        """
        self._steps = 0
        if seed is not None and states is None:
            observation = reset_by_seed(self._simulator, seed)
        elif states is not None and seed is None:
            observation = reset_to_state(self._simulator, states, model)
        else:
            raise ValueError("an episode starts from a seed or from stored states: give one of them")
        return raw_observation(observation, self._task)

    def step(self, action: NDArray[np.floating]) -> Transition:
        """Hold ``action`` (10 per arm) for one control step of 0.05 s."""
        observation, _, _, _ = self._simulator.step(file_actions(action))
        success = bool(self._simulator.is_success()["task"])
        self._steps += 1
        done = success or self._steps >= self._max_steps
        return Transition(raw_observation(observation, self._task), float(success), success, done)

    def render(self) -> NDArray[np.uint8]:
        """Draw the scene from the task's camera: (frame_size, frame_size, 3)."""
        return self._camera.frame()


def raw_observation(observation: dict[str, np.ndarray], task: Task) -> NDArray[np.float64]:
    """Put robomimic's observation by key into one vector (S,), float64, in the public order."""
    return np.concatenate([observation[key] for key in observation_keys(task)]).astype(np.float64)


def arm_poses(state: NDArray[np.floating], task: Task) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Take grip sites (..., arms, 3) and hands' quaternions (..., arms, 4) from raw observations (..., S)."""
    arms = state[..., OBJECT_DIM[task] :].reshape(*state.shape[:-1], ARMS[task], ARM_DIM)
    return arms[..., :3], arms[..., 3:7]


def observe(state: NDArray[np.floating], kind: ObservationKind) -> NDArray[np.float32]:
    """Compute the observation vectors (..., D), float32, that condition a policy, from raw observations (..., S).

    ``state`` is the whole raw observation. ``one_arm``, only for Transport, is the object's 41 components and the first
    arm's 9, as in the paper's Table D.2.

    Raises:
        ValueError: ``kind`` is unknown, or it is ``one_arm`` and the raw observations are not Transport's.
    """
    state = np.asarray(state)
    if kind == "state":
        return state.astype(np.float32)
    if kind != "one_arm":
        raise ValueError(f"observation kind is {kind!r}, must be one of {get_args(ObservationKind)}")
    if state.shape[-1] != STATE_DIM["transport"]:
        raise ValueError(f"observation kind 'one_arm' is Transport's, of {STATE_DIM['transport']}, not {state.shape}")
    return state[..., : OBSERVATION_DIM["transport"]["one_arm"]].astype(np.float32)
