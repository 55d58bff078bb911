"""Scripted experts for Robomimic's Lift (raise a cube) and Can (put a can from one bin into its corner of another).

They know the object's position, and go through the same phases each time: above the object, down, close, away. The
variation is drawn once per episode, within limits that work: speed, heights, offsets of a few millimetres, the turn of
the hand, the place where the can is dropped. So equal initial states can be solved in different ways, as by different
people.
"""

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
    yaw_of,
)

_MAX_STEPS = {"lift": 100, "can": 200}  # of a demonstration; far more than a successful one needs

_REST_YAW = np.pi / 2  # of the hand at the start
_BASE = np.array([-0.5, -0.1])  # m, x and y of Can's robot base
_FAR = 0.70  # m from the base: farther out, a hand that points straight down does not reach safely
_MOST_LEAN = 0.6  # rad


def lift(env: Any, generator: RandomState) -> Script:
    """Grasp the cube by two opposite sides, and raise it; ``env`` is robosuite's ``Lift``."""
    arm = Arm(env)
    lead = generator.uniform(0.05, 0.09)
    above = generator.uniform(0.05, 0.12)
    raised = generator.uniform(0.10, 0.16)
    aside = generator.uniform(-0.03, 0.03, 2)
    off_centre = np.array([*generator.uniform(-0.006, 0.006, 2), generator.uniform(-0.004, 0.006)])
    # any side of the cube works: mostly the one with the least turn is chosen, sometimes the next
    cube_yaw = yaw_of(_body(env, "cube_main").rotation)
    yaw = nearest_yaw(cube_yaw, _REST_YAW + generator.uniform(-0.4, 0.4), np.pi / 2)

    def at_cube() -> Pose:
        cube = _body(env, "cube_main")
        return Pose(cube.position + off_centre, downward(nearest_yaw(yaw_of(cube.rotation), yaw, np.pi / 2)))

    def above_cube() -> Pose:
        return at_cube().shifted(aside[0], aside[1], above)

    yield from move(arm, above_cube, OPEN, Pace(lead, 6 * lead, tolerance=0.03, angle_tolerance=0.15))
    yield from move(arm, at_cube, OPEN, Pace(0.8 * lead, 6 * lead, tolerance=0.008))
    low = at_cube()
    yield from grip(arm, low, CLOSE)
    high = low.shifted(aside[0], aside[1], raised)
    yield from move(arm, high, CLOSE, Pace(lead, timeout=30))
    yield from hold(arm, high, CLOSE, 10)


def can(env: Any, generator: RandomState) -> Script:
    """Grasp the can from above, carry it over the bins' walls and drop it; ``env`` is robosuite's ``PickPlaceCan``."""
    arm = Arm(env)
    lead = generator.uniform(0.09, 0.14)
    turn = 6 * lead
    above = generator.uniform(0.06, 0.12)
    carried = generator.uniform(0.13, 0.19)
    dropped = generator.uniform(0.04, 0.08)
    off_centre = np.array([*generator.uniform(-0.006, 0.006, 2), generator.uniform(-0.005, 0.03)])
    twist = generator.uniform(-0.5, 0.5)  # the can is round: any turn of the hand works
    last_twist = twist * generator.uniform(0.5, 1.0)
    # the goal is x 0.1 to 0.295, y 0.28 to 0.525 m; its nearer corner is easier to reach
    place = generator.uniform([0.145, 0.335], [0.19, 0.385])

    def at_can() -> Pose:
        position = _body(env, "Can_main").position + off_centre
        return Pose(position, _reaching(position, twist))

    def above_can() -> Pose:
        return at_can().shifted(z=above)

    yield from move(arm, above_can, OPEN, Pace(lead, turn, tolerance=0.03, angle_tolerance=0.3, timeout=30))
    yield from move(arm, at_can, OPEN, Pace(0.7 * lead, turn, tolerance=0.01, angle_tolerance=0.15, timeout=25))
    low = at_can()
    yield from grip(arm, low, CLOSE)
    # a bent path: it cuts corners by a few centimetres, and the turn of the hand no longer matters
    yield from move(arm, low.shifted(z=carried), CLOSE, Pace(lead, tolerance=0.06, angle_tolerance=np.pi, timeout=20))
    at_goal = Pose(np.array([*place, low.position[2]]), _reaching(place, last_twist))
    over = at_goal.shifted(z=carried)
    yield from move(arm, over, CLOSE, Pace(lead, tolerance=0.05, angle_tolerance=np.pi, timeout=50))
    release = at_goal.shifted(z=dropped)
    yield from move(arm, release, CLOSE, Pace(lead, tolerance=0.03, angle_tolerance=np.pi, timeout=20))
    yield from grip(arm, release, OPEN, least=5)
    yield from move(arm, release.shifted(z=0.12), OPEN, Pace(lead, timeout=20))


def _body(env: Any, name: str) -> Pose:
    index = env.sim.model.body_name2id(name)
    return Pose(np.array(env.sim.data.body_xpos[index]), np.array(env.sim.data.body_xmat[index]).reshape(3, 3))


def _reaching(position: np.ndarray, twist: float) -> np.ndarray:
    """Compute the rotation (3, 3) of a hand at ``position`` (x, y, …) that leans outwards, more if farther out.

    Leaning brings the wrist nearer to the base. The hand opens across the line from the base, turned by ``twist``
    radians. It is turned less if it leans, because a hand that leans and is turned would grasp a standing can askew.
    """
    outwards = np.asarray(position[:2]) - _BASE
    azimuth = np.arctan2(outwards[1], outwards[0])
    lean = np.clip((np.linalg.norm(outwards) - _FAR) / 0.2, 0.0, _MOST_LEAN)
    across = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    upright = downward(azimuth + _REST_YAW + twist * (1 - lean / _MOST_LEAN))
    return Rotation.from_rotvec(-lean * across).as_matrix() @ upright


LIFT = robomimic_expert("lift", lift, _MAX_STEPS["lift"])
CAN = robomimic_expert("can", can, _MAX_STEPS["can"])
