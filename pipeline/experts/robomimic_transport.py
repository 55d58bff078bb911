"""An expert for Robomimic's Transport: two arms clear a bin of trash and bring a hammer into it from a lidded bin.

Arm 0 puts the lid aside, picks the hammer up by the end of its handle nearer to itself, and holds it out between the
tables. Meanwhile arm 1 moves the trash from the target bin to the trash bin. Then it takes the hammer by the other end
and lowers it into the target bin. The arms run side by side, and wait for each other only at the handover.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import RandomState
from scipy.spatial.transform import Rotation

from pipeline.experts.robomimic_episode import robomimic_expert
from pipeline.experts.waypoints import (
    CLOSE,
    OPEN,
    Arm,
    Pace,
    Pose,
    Script,
    downward,
    grip,
    hold,
    move,
    nearest_yaw,
    together,
    yaw_of,
)

MAX_STEPS = 700
_WAIT = 400  # steps that an arm waits for the other at most

_REST_YAW = (np.pi, 0.0)  # of the hands: both open along the world's x axis
_CLEAR = 1.06  # m, height of a hand above the bins; their walls end at 0.95
_CLEAR_WITH_HAMMER = 1.16  # m; the hammer hangs down from the hand
_ASIDE = np.array([-0.20, -0.45])  # m, place of the lid on the table beside its bin
_LID_ON_TABLE = 0.826  # m, height of the lid's handle
_OPENED = 0.05  # m between the fingers; from here on they certainly hold nothing
_LOST = 0.7  # m; a hammer below this has fallen past the tables
_HELD = 0.02  # m, least distance between the fingers when they hold hammer or trash
_MOST_SLANT = 0.35  # sine of the handle's angle to the horizontal, in a hand that points down
_IN_BIN = 0.84  # m; an object above this has left the floor of its bin


@dataclass
class Handover:
    """State of the handover, shared by the two arms."""

    offered: bool = False  # arm 0 holds the hammer out
    taken: bool = False  # arm 1 has closed its gripper on it
    free: bool = False  # arm 0 has opened its gripper and moved away


@dataclass(frozen=True)
class Variation:
    """Differences between episodes besides their initial states."""

    lead: float  # m, see Pace
    above: float  # m above an object before the last part of the descent
    ends: tuple[float, float]  # m from the middle of the hammer's handle to either hand
    meeting: np.ndarray  # (3,) m, where arm 0 offers the hammer
    lean: tuple[float, float]  # rad, of either hand towards the other, so that arms stretch less and do not touch
    lid: np.ndarray  # (2,) m, off the usual place for the lid
    drop: np.ndarray  # (3,) m, off the middle of the bins' floor
    along: float  # m, place of the grasp along the lid's handle

    @classmethod
    def drawn(cls, random: RandomState) -> "Variation":
        """Draw a variation."""
        return cls(
            lead=random.uniform(0.07, 0.11),
            above=random.uniform(0.05, 0.08),
            ends=(random.uniform(-0.065, -0.05), random.uniform(0.055, 0.07)),
            meeting=random.uniform([-0.03, -0.07, 1.06], [0.03, -0.05, 1.10]),
            lean=(random.uniform(0.35, 0.5), random.uniform(0.2, 0.3)),
            lid=random.uniform(-0.02, 0.02, 2),
            drop=random.uniform([-0.03, -0.02, 0.10], [0.03, 0.02, 0.14]),
            along=random.uniform(-0.015, 0.015),
        )


def script(env: Any, random: RandomState) -> Script:
    """Yield the expert's actions (14,) in ``env``, a ``TwoArmTransport`` with its arms opposite each other."""
    variation = Variation.drawn(random)
    handover = Handover()
    for action in together(_fetch(env, variation, handover), _deliver(env, variation, handover)):
        if env.transport.payload_pos[2] < _LOST:
            return
        yield action


def open_bin(env: Any, arm: Arm, variation: Variation) -> Script:
    """Lift the lid off the start bin by its handle, and put it down on the table beside."""
    objects, rest = env.transport, downward(_REST_YAW[0])

    def lid() -> Pose:
        return Pose(objects.lid_handle_pos, rest).shifted(y=variation.along)

    closed = objects.lid_handle_pos[2]
    while objects.lid_handle_pos[2] > closed - 0.05:
        yield from _pick(arm, lid, variation)
        yield from move(arm, lid().shifted(z=0.08), CLOSE, Pace(variation.lead, tolerance=0.03))
        if arm.opening > 0.01:
            place = Pose(np.array([*(_ASIDE + variation.lid), _LID_ON_TABLE + 0.01]), rest)
            yield from _drop(arm, place, variation, clear=_CLEAR)


def _fetch(env: Any, variation: Variation, handover: Handover) -> Script:
    """Control arm 0: put the lid aside, and bring the hammer out of its bin to the meeting point."""
    arm, objects = Arm(env, 0), env.transport
    yield from open_bin(env, arm, variation)

    def hammer_end() -> Pose:
        end, yaw = _handle(objects, variation.ends[0])
        return Pose(end, downward(yaw + _REST_YAW[0])).shifted(z=0.007)

    def carried() -> bool:
        level = abs(_handle_axis(objects)[2]) < _MOST_SLANT
        return _HELD < arm.opening < _OPENED and objects.payload_pos[2] > _IN_BIN and level

    while not carried():
        yield from _over_bin(arm, hammer_end, variation)
        yield from _pick(arm, hammer_end, variation)
        # move off the wall: it is 5 mm from the head, and would turn the hammer in the hand
        grasp, off_wall = hammer_end(), -0.03 * np.sign(_head_direction(objects)[1])
        yield from move(arm, grasp.shifted(y=off_wall, z=_CLEAR - _IN_BIN), CLOSE, Pace(0.05, tolerance=0.03))
        if not carried():
            yield from move(arm, grasp.shifted(z=0.02), CLOSE, Pace(0.05, tolerance=0.02))
            yield from grip(arm, grasp.shifted(z=0.02), OPEN, least=8)
    pace = Pace(variation.lead, tolerance=0.03)
    offer = Pose(variation.meeting, downward(_REST_YAW[0], -variation.lean[0]))
    yield from move(arm, offer.shifted(y=-0.15), CLOSE, Pace(variation.lead, tolerance=0.06, angle_tolerance=0.3))
    yield from move(arm, offer, CLOSE, Pace(0.06, tolerance=0.015))
    yield from hold(arm, offer, CLOSE, 6)
    handover.offered = True
    yield from _wait(arm, offer, CLOSE, lambda: handover.taken)
    yield from grip(arm, offer, OPEN, least=8, most=12)
    yield from move(arm, _backed(offer, 0.12), OPEN, Pace(0.05, tolerance=0.03))
    handover.free = True
    yield from move(arm, _backed(offer, 0.2).shifted(y=-0.1), OPEN, pace)


def _deliver(env: Any, variation: Variation, handover: Handover) -> Script:
    """Control arm 1: put the trash into its bin, then the hammer from arm 0 into the target bin."""
    arm, objects = Arm(env, 1), env.transport
    rest = downward(_REST_YAW[1])

    def trash() -> Pose:
        yaw = nearest_yaw(yaw_of(Rotation.from_quat(objects.trash_quat).as_matrix()), _REST_YAW[1], np.pi / 2)
        return Pose(objects.trash_pos, downward(yaw))

    while not objects.trash_in_trash_bin:
        yield from _over_bin(arm, trash, variation)
        yield from _pick(arm, trash, variation)
        if arm.opening > _HELD:
            place = Pose(objects.trash_bin_pos + variation.drop, rest)
            yield from _drop(arm, place, variation, clear=_CLEAR)

    def hammer_end() -> Pose:
        end, yaw = _handle(objects, variation.ends[1])
        return Pose(end, downward(yaw + _REST_YAW[1], -variation.lean[1]))

    ready = Pose(variation.meeting, downward(_REST_YAW[1], -variation.lean[1])).shifted(y=0.3, z=0.10)
    yield from _wait(arm, ready, OPEN, lambda: handover.offered)
    while not _HELD < arm.opening < _OPENED:
        yield from move(arm, lambda: _backed(hammer_end(), 0.12), OPEN, Pace(0.05, tolerance=0.02))
        yield from _pick(arm, hammer_end, variation)
    handover.taken = True
    yield from _wait(arm, arm.pose, CLOSE, lambda: handover.free)
    place = Pose(objects.target_bin_pos + variation.drop, rest).shifted(y=0.03, z=0.08)
    yield from _drop(arm, place, variation, clear=_CLEAR_WITH_HAMMER)


def _over_bin(arm: Arm, target: Callable[[], Pose], variation: Variation) -> Script:
    """Move over the bin that holds ``target``, high enough not to touch its walls on the way."""

    def over() -> Pose:
        goal = target()
        return goal.shifted(z=_CLEAR - goal.position[2])

    yield from move(arm, over, OPEN, Pace(variation.lead, tolerance=0.03, angle_tolerance=0.2))


def _pick(arm: Arm, target: Callable[[], Pose], variation: Variation) -> Script:
    """Approach ``target`` in its hand's direction, the last part only once well aligned, and close the gripper."""

    def approaching() -> Pose:
        goal, now = target(), arm.pose
        axis = goal.rotation[:, 2]
        distance = (goal.position - now.position) @ axis
        aligned = arm.at(_backed(goal, distance), Pace(tolerance=0.014, angle_tolerance=0.15))
        return goal if aligned else _backed(goal, variation.above)

    yield from move(arm, lambda: _backed(target(), variation.above), OPEN, Pace(variation.lead, tolerance=0.025))
    yield from move(arm, approaching, OPEN, Pace(0.06, tolerance=0.011))
    yield from grip(arm, target(), CLOSE)


def _drop(arm: Arm, place: Pose, variation: Variation, clear: float) -> Script:
    """Carry the object over ``place`` with the hand at height ``clear``, lower it, let go, and rise again."""
    now = arm.pose
    over = place.shifted(z=clear - place.position[2])
    bend = Pace(variation.lead, tolerance=0.05, angle_tolerance=0.3)
    yield from move(arm, now.shifted(z=max(0.0, clear - now.position[2])), CLOSE, bend)
    yield from move(arm, over, CLOSE, Pace(variation.lead, tolerance=0.03))
    yield from move(arm, place, CLOSE, Pace(variation.lead, tolerance=0.025))
    yield from grip(arm, place, OPEN, least=6)
    yield from move(arm, over, OPEN, bend)


def _handle(objects: Any, offset: float) -> tuple[np.ndarray, float]:
    """Compute the point (3,) ``offset`` metres along the hammer's handle from its middle, and the turn of the handle.

    The turn is in radians about the vertical; it is 0 if the handle lies along the world's y axis.
    """
    along = _handle_axis(objects)
    return objects.payload_pos + offset * along, float(np.arctan2(-along[0], along[1]))


def _head_direction(objects: Any) -> np.ndarray:
    """Compute the direction (3,) of the hammer's handle, towards its head."""
    return Rotation.from_quat(objects.payload_quat).as_matrix()[:, 2]


def _handle_axis(objects: Any) -> np.ndarray:
    """Compute the direction (3,) of the hammer's handle, towards arm 1."""
    axis = _head_direction(objects)
    return axis if axis[1] > 0 else -axis


def _backed(pose: Pose, distance: float) -> Pose:
    """Move ``pose`` back by ``distance`` metres, against the direction in which the hand points."""
    return Pose(pose.position - distance * pose.rotation[:, 2], pose.rotation)


def _wait(arm: Arm, goal: Pose, gripper: float, until: Callable[[], bool]) -> Script:
    """Stay at ``goal`` for at least one step, until ``until`` is true."""
    yield from hold(arm, goal, gripper, 1)
    yield from move(arm, goal, gripper, Pace(0.08, tolerance=0.0, timeout=_WAIT), until)


EXPERT = robomimic_expert("transport", script, MAX_STEPS)
