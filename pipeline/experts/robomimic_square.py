"""An expert for Robomimic's Square: pick the square nut up by its handle and lower it over the square peg.

It reads the nut's pose in every state and controls the nut by its own pose error, for any grasp in the hand.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import RandomState
from scipy.spatial.transform import Rotation

from pipeline.experts.robomimic_episode import robomimic_expert
from pipeline.experts.waypoints import CLOSE, OPEN, Arm, Pace, Pose, Script, downward, grip, hold, move, yaw_of

MAX_STEPS = 200

_PEG = np.array([0.23, 0.10])  # its axis, m
_PEG_TOP = 0.95  # m
_REST_YAW = np.pi / 2  # of the hand at rest
_LOST_BELOW = 0.92  # m; a nut in the hand is above this after the lift
_CENTRED = 0.005  # m off the peg's axis, below which the nut is lowered; it fits within 0.0067
_MAX_TILT = np.deg2rad(25.0)  # of a nut that is held well
_ALIGNED = Pace(tolerance=0.008, angle_tolerance=0.12)  # tolerances before the fingers go down beside the handle


@dataclass(frozen=True)
class Variation:
    """Differences between episodes besides their initial states."""

    along: float  # m from the nut's centre to the fingers, along the handle
    depth: float  # m from the nut's middle plane to the fingertips' centre
    hover: float  # m above the nut before the descent
    height: float  # m, of the nut on its way to the peg
    release: float  # m, of the nut when the fingers open
    lead: float  # m, see Pace

    @classmethod
    def drawn(cls, random: RandomState) -> "Variation":
        """Draw a variation."""
        return cls(
            along=random.uniform(0.062, 0.069),
            depth=random.uniform(-0.004, 0.002),
            hover=random.uniform(0.05, 0.09),
            height=random.uniform(0.995, 1.03),
            release=random.uniform(0.90, 0.92),
            lead=random.uniform(0.07, 0.10),
        )


class Nut:
    """The square nut of a robosuite environment."""

    def __init__(self, env: Any) -> None:
        """Take the nut of ``env``, a ``NutAssemblySquare``."""
        self._env = env

    @property
    def pose(self) -> Pose:
        """The nut's pose; the handle lies along its x axis."""
        data, body = self._env.sim.data, self._env.obj_body_id["SquareNut"]
        return Pose(np.array(data.body_xpos[body]), np.array(data.body_xmat[body]).reshape(3, 3))

    @property
    def yaw(self) -> float:
        """The handle's direction, seen from above, in radians."""
        return yaw_of(self.pose.rotation)

    @property
    def tilt(self) -> float:
        """The angle in radians between the nut's axis and the vertical."""
        return float(np.arccos(np.clip(self.pose.rotation[2, 2], -1.0, 1.0)))


def script(env: Any, random: RandomState) -> Script:
    """Yield the expert's actions (7,) in ``env``, a ``NutAssemblySquare``; it tries again without end."""
    arm, nut = Arm(env), Nut(env)
    yield from hold(arm, arm.pose, OPEN, 2)  # the nut is dropped from above the table
    while True:
        variation = Variation.drawn(random)
        hand_yaw, nut_yaw = choose_yaws(nut.yaw, random)
        yield from _pick(arm, nut, hand_yaw, variation)
        if nut.pose.position[2] > _LOST_BELOW and nut.tilt < _MAX_TILT:
            yield from _place(env, arm, nut, nut_yaw, variation)
        else:
            yield from hold(arm, arm.pose, OPEN, 4)  # open the gripper, and try again


def choose_yaws(nut_yaw: float, random: RandomState) -> tuple[float, float]:
    """Choose the hand's yaw for the grasp and the nut's yaw for the peg, from the nut's present yaw; all in radians.

    The fingers can close across the handle in two ways, and the nut fits on the peg in four. A good choice turns the
    wrist little, keeps it off its limits, and leaves the handle on the near side of the peg (the far side is out of
    reach). Among nearly equal choices chance decides.
    """

    def cost(grasp: float, goal: float) -> float:
        turn = _wrapped(goal - nut_yaw)
        first = _wrapped(grasp - _REST_YAW)
        extreme = max(abs(first), abs(first + turn))
        far = 10.0 if np.cos(goal) > 0.5 else 0.0
        limits = 5.0 * max(0.0, extreme - 1.75)
        return extreme + 0.6 * abs(turn) + limits + far + random.uniform(0.0, 0.2)

    choices = [(nut_yaw + side, goal) for side in (np.pi / 2, -np.pi / 2) for goal in np.arange(4) * np.pi / 2]
    return min(choices, key=lambda choice: cost(*choice))


def _pick(arm: Arm, nut: Nut, hand_yaw: float, variation: Variation) -> Script:
    """Move above the handle, then down beside it once well aligned, close the gripper, and lift."""
    turn = hand_yaw - nut.yaw

    def above(height: float) -> Pose:
        position, rotation = nut.pose
        return Pose(position + rotation[:, 0] * variation.along, downward(nut.yaw + turn)).shifted(z=height)

    def descending() -> Pose:
        over = above(arm.pose.position[2] - nut.pose.position[2])
        return above(variation.depth if arm.at(over, _ALIGNED) else variation.hover)

    yield from move(arm, lambda: above(variation.hover), OPEN, Pace(variation.lead, tolerance=0.02))
    yield from move(arm, descending, OPEN, Pace(variation.lead, tolerance=0.005, timeout=40))
    grasp = above(variation.depth)
    yield from grip(arm, grasp, CLOSE)
    lifted = grasp.shifted(z=variation.height - nut.pose.position[2])
    yield from move(arm, lifted, CLOSE, Pace(variation.lead, tolerance=0.03, timeout=25))


def _place(env: Any, arm: Arm, nut: Nut, nut_yaw: float, variation: Variation) -> Script:
    """Move the nut over the peg, lower it once centred, release it a few centimetres above the table, and rise."""
    upright = Rotation.from_rotvec([0.0, 0.0, nut_yaw]).as_matrix()

    def carried(height: float) -> Pose:
        """Compute the hand's pose that brings the nut upright over the peg, at ``height``."""
        hand, now = arm.pose, nut.pose
        correction = upright @ now.rotation.T
        position = np.append(_PEG, height) - correction @ (now.position - hand.position)
        return Pose(position, correction @ hand.rotation)

    def descending() -> Pose:
        position = nut.pose.position
        aside = _PEG - position[:2]
        clear = position[2] < _PEG_TOP or np.linalg.norm(aside) < _CENTRED
        goal = carried(position[2] - 0.02 if clear else _PEG_TOP + 0.04)
        return goal.shifted(*(0.7 * aside))  # the hand yields sideways on its way down, so overcorrect the error

    pace = Pace(variation.lead, turn=0.3, tolerance=0.008, angle_tolerance=0.08, timeout=50)
    yield from move(arm, lambda: carried(variation.height), CLOSE, pace)
    pace = Pace(variation.lead, turn=0.3, tolerance=0.0, timeout=50)
    yield from move(arm, descending, CLOSE, pace, until=lambda: nut.pose.position[2] < variation.release)
    released = arm.pose
    yield from grip(arm, released, OPEN, least=6)
    yield from move(arm, released.shifted(z=0.10), OPEN, Pace(timeout=12), until=env._check_success)


def _wrapped(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


EXPERT = robomimic_expert("square", script, MAX_STEPS)
