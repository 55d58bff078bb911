"""Convert Robomimic's actions between the forms of policies, of absolute files and of relative files.

Policies give 10 numbers per arm: position (3), rotation as six numbers, gripper. Files and the simulator take 7:
position (3), axis-angle (3), gripper. These are absolute, in the world's frame, or relative to the arm's pose.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.robomimic.rotation import (
    axis_angle_from_matrix,
    matrix_from_axis_angle,
    matrix_from_quaternion,
    matrix_from_six,
    six_from_matrix,
)

Array = NDArray[np.float64]

FILE_ACTION = 7
POLICY_ACTION = 10

_METRES, _RADIANS = 0.05, 0.5  # size of a relative action of 1 (output_max of the public controller settings)
_SITE_IN_HAND = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # a Panda's grip site, axes as columns


def file_actions(actions: NDArray[np.floating]) -> Array:
    """Convert a policy's actions (..., 10 per arm) to those of files and simulator (..., 7 per arm: axis-angle)."""
    arms = _by_arm(actions, POLICY_ACTION)
    rotation = axis_angle_from_matrix(matrix_from_six(arms[..., 3:9]))
    return _flat(np.concatenate([arms[..., :3], rotation, arms[..., 9:]], axis=-1))


def policy_actions(actions: NDArray[np.floating]) -> Array:
    """Convert actions of files (..., 7 per arm) to a policy's (..., 10 per arm), with six numbers per rotation."""
    arms = _by_arm(actions, FILE_ACTION)
    rotation = six_from_matrix(matrix_from_axis_angle(arms[..., 3:6]))
    return _flat(np.concatenate([arms[..., :3], rotation, arms[..., 6:]], axis=-1))


def are_absolute(actions: NDArray[np.floating], positions: NDArray[np.floating]) -> bool:
    """Tell from the data whether a file's ``actions`` (N, 7 per arm) are absolute.

    Absolute targets lie near the grip sites' ``positions`` (N, arms, 3), about a metre above the floor. Relative
    targets lie near 0.
    """
    targets = _by_arm(actions, FILE_ACTION)[..., :3]
    return bool(np.linalg.norm(targets - positions, axis=-1).mean() < np.linalg.norm(targets, axis=-1).mean())


def absolute_actions(
    actions: NDArray[np.floating], positions: NDArray[np.floating], quaternions: NDArray[np.floating]
) -> Array:
    """Convert relative actions to absolute ones (T, 7 per arm) that give robosuite's controller the same goals.

    The goal is the pose sensed when the action arrives, moved and rotated along the world's axes by the action, clipped
    to [-1, 1], times 5 cm and 0.5 rad. An action without rotation keeps the rotation of the previous goal.

    Args:
        actions: (T, 7 per arm), relative, of one episode.
        positions: (T, arms, 3) of the grip sites before each action.
        quaternions: (T, arms, 4) of the hands, as observed (x, y, z, w).
    """
    arms = _by_arm(actions, FILE_ACTION)
    relative = arms[..., :6].clip(-1, 1)
    sensed = matrix_from_quaternion(quaternions) @ _SITE_IN_HAND
    turned = matrix_from_axis_angle(_RADIANS * relative[..., 3:]) @ sensed
    kept = ~relative[..., 3:].any(axis=-1)
    for step, arm in np.argwhere(kept):
        turned[step, arm] = turned[step - 1, arm] if step else sensed[step, arm]
    moved = positions + _METRES * relative[..., :3]
    return _flat(np.concatenate([moved, axis_angle_from_matrix(turned), arms[..., 6:]], axis=-1))


def _by_arm(actions: NDArray[np.floating], size: int) -> Array:
    return np.asarray(actions, dtype=np.float64).reshape(*actions.shape[:-1], -1, size)


def _flat(arms: Array) -> Array:
    return arms.reshape(*arms.shape[:-2], -1)
