"""Inverse kinematics (damped least squares) of a velocity-limited arm with position servos.

Kinematics are computed in a copy of the simulator's data. In the simulator's own data they would change its warm
starts, and so the episode.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Vector = NDArray[np.float64]

DAMPING = 0.05  # of the least squares; keeps joint steps bounded near singular poses
POSTURE_GAIN = 0.05  # share of the way back to the posture in a control step, in the null space of the hand's pose
MAX_TURN = 0.25  # largest turn of the hand in a control step, radians
LIMIT_MARGIN = 0.02  # margin to the joints' limits, radians


class Arm:
    """An arm: the first ``joints`` degrees of freedom of a model, which carry the hand's site."""

    def __init__(self, model: Any, site: str, joints: int = 7) -> None:
        """Wrap ``model`` (mujoco.MjModel); ``site`` names the frame that is controlled."""
        import mujoco

        self._mujoco = mujoco
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = model.site(site).id
        self._joints = joints
        self._limits = model.jnt_range[:joints] + np.array([LIMIT_MARGIN, -LIMIT_MARGIN])
        self._jacobian = np.zeros((6, model.nv))
        self._gravity = np.zeros(model.nv)

    def observe(self, qpos: Vector) -> None:
        """Copy the simulator's generalised positions ``qpos`` (nq,)."""
        self._data.qpos[:] = qpos
        self._update()

    @property
    def angles(self) -> Vector:
        """The joint angles, in radians: (joints,)."""
        return self._data.qpos[: self._joints].copy()

    @property
    def position(self) -> Vector:
        """The site's position in metres: (3,)."""
        return self._data.site_xpos[self._site].copy()

    @property
    def rotation(self) -> Vector:
        """The site's axes as columns: (3, 3)."""
        return self._data.site_xmat[self._site].reshape(3, 3).copy()

    def site(self, name: str) -> Vector:
        """Return the position of another site of the model in metres: (3,)."""
        return self._data.site_xpos[self._model.site(name).id].copy()

    def gravity_sag(self) -> Vector:
        """Compute the sag of each joint's position servo under gravity at rest, in radians: (joints,)."""
        # velocities are zero in this copy, so the inverse dynamics contain only gravity
        self._mujoco.mj_rne(self._model, self._data, 0, self._gravity)
        return self._gravity[: self._joints] / self._model.actuator_gainprm[: self._joints, 0]

    def solve(self, position: Vector, rotation: Vector, posture: Vector, steps: int = 50) -> Vector:
        """Find joint angles (joints,), near ``posture``, that bring the site to a pose."""
        observed = self.angles
        self._move(posture)
        for _ in range(steps):
            self._move(self.angles + self.joint_step(position, rotation, posture, 0.1))
        solution = self.angles
        self._move(observed)
        return solution

    def joint_step(self, position: Vector, rotation: Vector, posture: Vector, speed: float) -> Vector:
        """Compute the joint displacements (joints,), radians, of one control step towards a pose of the site.

        Args:
            position: (3,) metres. rotation: (3, 3), axes as columns.
            posture: (joints,) preferred joint angles among those that give the same motion of the hand.
            speed: largest motion of the site, metres.
        """
        linear = _shortened(position - self.position, speed)
        angular = _shortened(Rotation.from_matrix(rotation @ self.rotation.T).as_rotvec(), MAX_TURN)
        self._mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site)
        jacobian = self._jacobian[:, : self._joints]
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + DAMPING**2 * np.eye(6))
        angles = self._data.qpos[: self._joints]
        relaxing = POSTURE_GAIN * (posture - angles)
        step = inverse @ np.concatenate([linear, angular])
        step += relaxing - inverse @ (jacobian @ relaxing)
        return np.clip(angles + step, self._limits[:, 0], self._limits[:, 1]) - angles

    def _move(self, angles: Vector) -> None:
        self._data.qpos[: self._joints] = angles
        self._update()

    def _update(self) -> None:
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_comPos(self._model, self._data)


def _shortened(vector: Vector, longest: float) -> Vector:
    return vector * min(1.0, longest / max(float(np.linalg.norm(vector)), 1e-9))
