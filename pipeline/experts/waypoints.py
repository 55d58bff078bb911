"""Move robosuite arms through poses: the functions that scripted experts for Robomimic's tasks are built from.

A script is a generator of actions. It reads the simulator each time it is resumed, so every action depends on the
latest state. Scripts are joined with ``yield from``; ``together`` runs two arms' scripts side by side. Actions are
absolute, (7,) for one arm: position (3), axis-angle (3) and gripper (1), for the controller ``OSC_POSE`` with
``control_delta: false``.

The controller pulls the hand towards the commanded pose like a critically damped spring (stiffness 150 and damping
2√150 per unit of mass). So a command that stays ``lead`` metres ahead of the hand moves it at √150/2 ≈ 6 ``lead`` per
second. The speed depends on the lead and not on the distance to the goal, so it is limited by a limit on the lead.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

OPEN, CLOSE = -1.0, 1.0

Script = Iterator[np.ndarray]


class Pose(NamedTuple):
    """Present or wanted pose of a hand in world coordinates. The gripper points along its z and opens along its x."""

    position: np.ndarray  # (3,) m, between the fingertips
    rotation: np.ndarray  # (3, 3), columns: the hand's axes

    def shifted(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> "Pose":
        """Return the pose moved by (x, y, z) metres along the world's axes, with the same rotation."""
        return Pose(self.position + np.array([x, y, z]), self.rotation)


@dataclass(frozen=True)
class Pace:
    """Speed limits of a hand's motion to a pose, and the tolerances at which it has arrived."""

    lead: float = 0.05  # m, largest lead of the command over the hand; the speed is about 6 leads per second
    turn: float = 0.4  # rad, the same for the rotation
    tolerance: float = 0.01  # m
    angle_tolerance: float = 0.1  # rad
    timeout: int = 60  # steps after which the motion ends in any case


class Arm:
    """One arm of a robosuite environment."""

    def __init__(self, env: Any, index: int = 0) -> None:
        """Wrap the robot ``index`` of ``env``, a robosuite environment (robomimic's wrapper holds it as ``.env``)."""
        self._env = env
        self._index = index

    @property
    def pose(self) -> Pose:
        """The hand's present pose."""
        data, site = self._env.sim.data, self._env.robots[self._index].eef_site_id
        return Pose(np.array(data.site_xpos[site]), np.array(data.site_xmat[site]).reshape(3, 3))

    @property
    def opening(self) -> float:
        """The distance between the two fingers in metres: 0.08 when open, 0 when closed on nothing."""
        joints = self._env.robots[self._index]._ref_gripper_joint_pos_indexes
        return float(np.abs(self._env.sim.data.qpos[joints]).sum())

    def towards(self, goal: Pose, gripper: float, pace: Pace) -> np.ndarray:
        """Compute the action (7,) that moves the hand towards ``goal``, no faster than ``pace`` allows."""
        now = self.pose
        ahead = goal.position - now.position
        turn = Rotation.from_matrix(goal.rotation @ now.rotation.T).as_rotvec()
        rotation = Rotation.from_rotvec(_shortened(turn, pace.turn)) * Rotation.from_matrix(now.rotation)
        return np.concatenate([now.position + _shortened(ahead, pace.lead), rotation.as_rotvec(), [gripper]])

    def at(self, goal: Pose, pace: Pace) -> bool:
        """Check whether the hand is within the tolerances of ``goal``."""
        now = self.pose
        angle = Rotation.from_matrix(goal.rotation @ now.rotation.T).magnitude()
        return bool(np.linalg.norm(goal.position - now.position) <= pace.tolerance and angle <= pace.angle_tolerance)


def move(
    arm: Arm,
    goal: Pose | Callable[[], Pose],
    gripper: float,
    pace: Pace,
    until: Callable[[], bool] | None = None,
) -> Script:
    """Move to ``goal`` until the hand has arrived or ``until`` is true; a function ``goal`` is called at every step.

    The motion ends after ``pace.timeout`` steps in any case; the script has to check whether the hand has arrived.
    """
    for _ in range(pace.timeout):
        target = goal() if callable(goal) else goal
        if arm.at(target, pace) or (until is not None and until()):
            return
        yield arm.towards(target, gripper, pace)


def grip(arm: Arm, goal: Pose, gripper: float, least: int = 3, most: int = 10) -> Script:
    """Stay at ``goal`` and open or close the gripper, until its fingers are at rest.

    ``least`` and ``most`` bound the number of steps: the fingers need some to start moving, and may never stop.
    """
    pace = Pace()
    before = arm.opening
    for step in range(most):
        yield arm.towards(goal, gripper, pace)
        now = arm.opening
        if step + 1 >= least and abs(now - before) < 0.001:
            return
        before = now


def hold(arm: Arm, goal: Pose, gripper: float, steps: int) -> Script:
    """Stay at ``goal`` for ``steps`` steps."""
    for _ in range(steps):
        yield arm.towards(goal, gripper, Pace())


def together(first: Script, second: Script) -> Script:
    """Run two arms' scripts side by side: actions (14,). The script that ends first repeats its last action.

    The result ends with the longer script.

    Raises:
        ValueError: a script ends before its first action; let it ``hold`` for one step.
    """
    scripts = (first, second)
    actions: list[np.ndarray | None] = [next(script, None) for script in scripts]
    while True:
        if actions[0] is None or actions[1] is None:
            raise ValueError("a script to run beside another has no action at all")
        yield np.concatenate([actions[0], actions[1]])
        following = [next(script, None) for script in scripts]
        if all(action is None for action in following):
            return
        actions = [before if action is None else action for before, action in zip(actions, following, strict=True)]


def downward(yaw: float, tilt: float = 0.0) -> np.ndarray:
    """Compute the rotation (3, 3) of a hand that points straight down and opens along the horizontal direction ``yaw``.

    ``yaw`` is in radians from the world's x towards its y; the arms' rest pose is about π/2. ``tilt`` leans the hand by
    this angle, in radians, about the direction in which it opens.
    """
    cos, sin = np.cos(yaw), np.sin(yaw)
    upright = np.array([[cos, sin, 0.0], [sin, -cos, 0.0], [0.0, 0.0, -1.0]])
    return upright @ Rotation.from_rotvec([tilt, 0.0, 0.0]).as_matrix()


def nearest_yaw(yaw: float, reference: float, period: float) -> float:
    """Shift ``yaw`` by multiples of ``period`` to the angle nearest to ``reference``.

    This is for objects that look the same after a turn by ``period`` (π/2 for a cube, π for two fingers on a bar).
    """
    return yaw + period * np.round((reference - yaw) / period)


def yaw_of(rotation: np.ndarray) -> float:
    """Compute the direction in radians, seen from above, of the x axis of a body's or hand's rotation (3, 3)."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def _shortened(vector: np.ndarray, limit: float) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector if length <= limit else vector * (limit / length)
