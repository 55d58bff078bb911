"""Skills of the arm for each object in Franka Kitchen: where to grasp it, and how to push, pull or turn it.

All lengths are in metres and angles in radians, in the world's frame: x to the right, y into the kitchen, z up. All
postures are in the branch of the inverse kinematics in which the arm starts, so the arm moves between any two without
turning over. The postures and the hand's directions come from a search with random restarts for nearness to the arm's
start and distance from the joints' limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

OPEN, CLOSED = 0.04, 0.0
"""Distance of each finger from the middle."""


@dataclass(frozen=True)
class Phase:
    """One leg of a skill: move the hand to a pose relative to the object's present position.

    Attributes:
        offset: (3,) from the object's site to the hand's.
        fingers: distance of each finger from the middle.
        patience: control steps after which the leg ends even if the pose is not reached.
        turn: about the direction in which the hand points.
        acting: whether this leg moves the object; it then ends when the task is done, and not at the pose.
    """

    offset: tuple[float, float, float]
    fingers: float
    patience: int
    turn: float = 0.0
    acting: bool = False


@dataclass(frozen=True)
class Skill:
    """The motion that does one task.

    Attributes:
        site: site of the model on the object that is moved.
        direction: yaw (0: into the kitchen, positive to the left) and pitch (positive: up) of the hand's direction, and
            its turn about this direction (0: the fingers open horizontally).
        posture: (7,) joint angles from which inverse kinematics starts.
        approach: (3,) offset from the site to the hand's first stop, which it can reach from anywhere.
        phases: the legs after the first stop.
        retreat: (3,) offset from the hand's last position to a place from which it can go anywhere.
        margin: largest distance to the goal at which the task counts as done here; the environment allows 0.3.
    """

    site: str
    direction: tuple[float, float, float]
    posture: tuple[float, ...]
    approach: tuple[float, float, float]
    phases: tuple[Phase, ...]
    retreat: tuple[float, float, float]
    margin: float


SKILLS: Mapping[str, Skill] = {
    "microwave": Skill(
        site="microhandle_site",
        direction=(0.13, -0.25, 0.0),
        posture=(-0.91, -1.73, 1.98, -1.81, -0.16, 1.35, 2.0),
        approach=(0.04, -0.14, 0.0),
        phases=(
            Phase((0.0, -0.01, 0.0), OPEN, 16),
            Phase((0.0, -0.01, 0.0), CLOSED, 4),
            Phase((-0.03, -0.1, 0.0), CLOSED, 30, acting=True),
            Phase((0.0, -0.03, 0.0), OPEN, 4),
        ),
        retreat=(0.05, -0.1, 0.0),
        margin=0.15,
    ),
    "kettle": Skill(
        site="kettle_site",
        direction=(-0.37, -0.86, 1.57),
        posture=(-0.18, -1.23, 1.95, -2.81, 1.17, 0.99, 2.55),
        approach=(-0.031, -0.079, 0.109),
        phases=(
            Phase((0.0, 0.0, 0.01), OPEN, 16),
            Phase((0.0, 0.0, 0.01), CLOSED, 4),
            Phase((0.01, 0.08, 0.03), CLOSED, 40, acting=True),
            Phase((0.0, 0.0, 0.0), OPEN, 4),
        ),
        retreat=(0.0, -0.1, 0.08),
        margin=0.15,
    ),
    "light switch": Skill(
        site="light_site",
        direction=(-0.27, -0.22, 1.06),
        posture=(-0.85, -1.07, 1.28, -2.31, 0.33, 1.26, 1.8),
        approach=(0.06, -0.12, 0.0),
        phases=(Phase((0.055, -0.03, 0.0), CLOSED, 14), Phase((-0.08, -0.02, 0.0), CLOSED, 20, acting=True)),
        retreat=(0.04, -0.12, 0.0),
        margin=0.22,
    ),
    "slide cabinet": Skill(
        site="slide_site",
        direction=(-0.5, -0.24, 0.97),
        posture=(-1.06, -1.14, 0.94, -2.02, 0.36, 0.94, 1.48),
        approach=(-0.09, -0.12, -0.1),
        phases=(Phase((-0.08, -0.01, -0.1), CLOSED, 14), Phase((0.06, -0.01, -0.1), CLOSED, 30, acting=True)),
        retreat=(-0.06, -0.14, -0.05),
        margin=0.1,
    ),
    "top burner": Skill(
        site="knob4_site",
        direction=(-0.28, -0.22, 0.0),
        posture=(-0.83, -1.06, 1.14, -2.37, 0.1, 1.39, 0.85),
        approach=(0.0, -0.14, 0.0),
        phases=(
            Phase((0.0, -0.045, 0.0), OPEN, 14),
            Phase((0.0, -0.045, 0.0), CLOSED, 4),
            Phase((0.0, -0.045, 0.0), CLOSED, 30, turn=1.6, acting=True),
            Phase((0.0, -0.05, 0.0), OPEN, 4, turn=1.6),
        ),
        retreat=(0.0, -0.12, 0.0),
        margin=0.15,
    ),
}


def hand_rotation(yaw: float, pitch: float, turn: float) -> Vector:
    """Compute the axes of the hand's site as columns (3, 3): it points along the third, fingers open along the second.

    ``turn`` is about the direction in which the hand points; all angles are in radians.
    """
    points = np.array([-np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), np.sin(pitch)])
    opens = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    cos, sin = np.cos(turn), np.sin(turn)
    about = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return np.stack([np.cross(opens, points), opens, points], axis=1) @ about
