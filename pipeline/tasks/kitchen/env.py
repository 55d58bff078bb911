"""Simulate Franka Kitchen: open, slide, turn and move four of seven elements with a 9-jointed arm, in any order.

This is the task of relay policy learning (Gupta et al., CoRL 2019) as Diffusion Policy evaluates it (Chi et al., RSS
2023). Only the MuJoCo model of gymnasium-robotics (``FrankaKitchen-v1``) is used. Sensing, control, scoring and resets
are done here, so that they are those of the reference and can be replayed bit for bit.

Raw observation (60): positions of the arm's 7 joints in radians and of its 2 fingers in metres, 21 of the elements'
joints (knobs and burners 8, light switch 2, slide cabinet 1, hinge cabinet 2, microwave 1, kettle x, y, z and
quaternion 7), and the goal, which the reference masks: 30 zeros. Action (9) in [-1, 1]: joint velocities divided by
2 rad/s (fingers: 2 m/s). A control step of 0.08 s is 40 physics steps of 2 ms, so 12.5 control steps per second.

As in the reference (``kitchen_multitask_v0.py``, ``franka_robot.py``, ``franka_config.xml``):

* Control: servos pull to (last *sensed* position + velocity · 0.08 s), clipped to the joints' ranges. The reference's
  velocity limit of 10 rad/s never binds.
* Noise: every sensed position has a uniform error of at most 0.1 · ``NOISE_AMPLITUDE`` (arm: 0.01 rad). By the rule
  above, this noise also moves the arm. FrankaKitchen-v1's own noise is not used: it is 10 to 200 times smaller, and
  among the elements shifted by one joint.
* Initial state: the same for all seeds, at rest; only the noise depends on the seed. One finger starts beyond its
  range (at 48 mm; open is 40 mm).
* An element is completed once its joints come within a distance of 0.3 of their goal; it then stays completed.
* Servo gains, force and control ranges, and joint damping: equal numbers in both models.

Unlike the reference:

* Physics: MuJoCo 3.3 with its defaults (Newton's solver, pyramidal cones, no noslip iterations) instead of 2.1, so
  contacts differ in detail. The actions of a public demonstration reach its states nearly, not exactly.
* Model: the pedestal of the arm collides; the tracked controller of the recording rig is absent.
* Scores use true joint positions, the reference's use sensed ones (at most 0.02 apart, against a distance of 0.3).
* An episode ends with the fourth element; the reference goes on for all seven, but its p1 to p4 count the same.
* The generator is numpy's ``RandomState`` and draws errors of positions only; the reference also draws velocity errors.
* Absolute joint positions as actions, an option of Diffusion Policy, are not offered.
"""

import atexit
import contextlib
import io
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.vector import Transition

MAX_STEPS = 280
FRAME_SKIP = 40
CONTROL_SECONDS = 0.08
ACTION_DIM = 9
ROBOT_DIM = 9
POSITION_DIM = 30
GOAL_DIM = 30
STATE_DIM = POSITION_DIM + GOAL_DIM

MAX_VELOCITY = 2.0
"""Joint velocity of an action of 1, in rad/s (fingers: m/s)."""

NOISE_RATIO = 0.1
NOISE_AMPLITUDE = np.repeat(
    [0.1, 0.005, 0.0005, 0.005, 0.1, 0.005, 0.1, 0.005],
    [9, 2, 6, 3, 3, 3, 3, 1],
)
"""(30,) Largest error of each sensed position at a noise ratio of 1, from the reference's ``franka_config.xml``."""

GOALS: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "bottom burner": ((11, 12), (-0.88, -0.01)),
    "top burner": ((15, 16), (-0.92, -0.01)),
    "light switch": ((17, 18), (-0.69, -0.05)),
    "slide cabinet": ((19,), (0.37,)),
    "hinge cabinet": ((20, 21), (0.0, 1.45)),
    "microwave": ((22,), (-0.75,)),
    "kettle": ((23, 24, 25, 26, 27, 28, 29), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
}
"""Element → its joints and their goal. The indices hold for observations and for the simulator's positions."""

GOAL_DISTANCE = 0.3
ENOUGH = 4  # elements that a demonstration completes

FullState = tuple[NDArray[np.float64], ...]
"""Positions (30,), velocities (29,) and the solver's start (29,), which an exact replay with contacts needs."""


def observe(state: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the observation vectors (..., 60), float32, that condition a policy: the raw observations themselves.

    The 30 zeros in place of the goal stay, since the published policies see them.
    """
    return np.asarray(state).astype(np.float32)


class Kitchen:
    """One kitchen. Score: completed elements divided by four, at most 1; success: four of the seven are completed.

    Attributes:
        simulation: the unwrapped gymnasium-robotics environment; ``.model`` and ``.data`` are MuJoCo's.
        completed: the elements completed in this episode so far.
    """

    def __init__(self, max_steps: int = MAX_STEPS, noise_ratio: float = NOISE_RATIO, frame_size: int = 256) -> None:
        """Make the simulation.

        Args:
            max_steps: control steps after which an episode ends.
            noise_ratio: largest sensor error over ``NOISE_AMPLITUDE``; 0 for perfect sensors.
            frame_size: width and height of rendered frames in pixels.
        """
        with contextlib.redirect_stderr(io.StringIO()):  # the import prints advertisements for other environments
            import gymnasium
            import gymnasium_robotics

            gymnasium.register_envs(gymnasium_robotics)
        simulation: Any = gymnasium.make(
            "FrankaKitchen-v1", width=frame_size, height=frame_size, disable_env_checker=True
        ).unwrapped
        self.simulation = simulation
        self.completed: frozenset[str] = frozenset()
        self._robot = simulation.robot_env
        self._start: FullState = (self._robot.init_qpos.copy(), np.zeros(simulation.model.nv))
        self._ranges = self._robot.robot_pos_bound[:ROBOT_DIM].T
        self._noise = noise_ratio * NOISE_AMPLITUDE
        self._max_steps = max_steps
        self._renders = False
        self.reset()

    def reset(self, seed: int = 0, state: FullState | None = None) -> NDArray[np.float64]:
        """Start an episode and return the first observation (60,).

        Args:
            seed: the seed of the sensors' noise.
            state: the start, from ``state()`` or a file's (positions, velocities); None: the usual start.
        """
        import mujoco

        model, data = self.simulation.model, self.simulation.data
        mujoco.mj_resetData(model, data)
        positions, velocities, *solver_start = self._start if state is None else state
        data.qpos[:], data.qvel[:] = positions, velocities
        mujoco.mj_forward(model, data)
        if solver_start:
            data.qacc_warmstart[:] = solver_start[0]
        self._generator = np.random.RandomState(seed)
        self._steps = 0
        self.completed = frozenset()
        self._sensed = self._sense()
        return self._observation()

    def state(self) -> FullState:
        """Copy the simulator's state, for ``reset``: positions (30,), velocities (29,), the solver's start (29,)."""
        data = self.simulation.data
        return data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy()

    def step(self, action: NDArray[np.floating]) -> Transition:
        """Move at the velocities ``action`` (9,), clipped to [-1, 1], for one control step of 0.08 s."""
        velocity = MAX_VELOCITY * np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        target = np.clip(self._sensed[:ROBOT_DIM] + velocity * CONTROL_SECONDS, *self._ranges)
        self._robot.do_simulation(target, FRAME_SKIP)
        self._steps += 1
        self._sensed = self._sense()
        self.completed |= self._at_goal()
        solved = len(self.completed) >= ENOUGH
        score = min(len(self.completed), ENOUGH) / ENOUGH
        return Transition(self._observation(), score, solved, solved or self._steps >= self._max_steps)

    def replay(
        self,
        observations: NDArray[np.floating],
        actions: NDArray[np.floating],
        state: FullState | None = None,
    ) -> NDArray[np.float64]:
        """Execute a demonstration of T steps and return the true positions (T + 1, 30), before and after each action.

        The demonstration stores the sensed positions, and the servo targets are computed from these. So the replay
        needs no seed, and sensor noise does not make it drift.

        Args:
            observations: (T, 60) as stored.
            actions: (T, 9) as stored.
            state: the start of the demonstration, as for ``reset``.
        """
        self.reset(state=state)
        positions = [self.simulation.data.qpos.copy()]
        for observation, action in zip(observations, actions, strict=True):
            self._sensed = np.asarray(observation[:POSITION_DIM], dtype=np.float64)
            self.step(action)
            positions.append(self.simulation.data.qpos.copy())
        return np.stack(positions)

    def render(self) -> NDArray[np.uint8]:
        """Draw the scene from the reference's camera: (frame_size, frame_size, 3). Only this needs OpenGL."""
        renderer = self._robot.mujoco_renderer
        if not self._renders:
            os.environ.setdefault("MUJOCO_GL", "egl")
            # On a CPU, a frame takes 2 s with shadow maps and eight samples per pixel, 0.1 s without them.
            quality = self.simulation.model.vis.quality
            quality.shadowsize = quality.offsamples = 0
        frame = renderer.render("rgb_array")
        if not self._renders:
            self._renders = True
            atexit.register(renderer.close)  # only now, to run before MuJoCo's own handler shuts EGL down
        return frame

    def _sense(self) -> NDArray[np.float64]:
        error = self._noise * self._generator.uniform(-1.0, 1.0, POSITION_DIM)
        return self.simulation.data.qpos + error

    def _observation(self) -> NDArray[np.float64]:
        return np.concatenate([self._sensed, np.zeros(GOAL_DIM)])

    def _at_goal(self) -> frozenset[str]:
        positions = self.simulation.data.qpos
        return frozenset(
            element
            for element, (joints, goal) in GOALS.items()
            if np.linalg.norm(positions[list(joints)] - goal) < GOAL_DISTANCE
        )
