"""Give robosuite's environments gymnasium's methods, from the recipe in a robomimic file: ids ``robosuite/<name>``.

Their keyword arguments are ``env_args.env_kwargs`` of the file. ``info`` has ``success``.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.robomimic.camera import Camera
from pipeline.tasks.robomimic.simulator import make_simulator_of, recipe, reset_by_seed

FRAME_SIZE = 256

Observation = dict[str, NDArray[np.floating]]


class Robosuite:
    """One simulation.

    Attributes:
        observation_space, action_space: the parts of gymnasium's spaces that ``GymnasiumEnv`` reads.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Make robosuite's environment ``name``; raises robosuite's own errors."""
        quiet = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "ignore_done": True}
        self._simulator = make_simulator_of(recipe(name, {**arguments, **quiet}))
        self._camera = Camera(self._simulator, FRAME_SIZE)
        self.observation_space = dict(reset_by_seed(self._simulator, 0))
        low, high = self._simulator.env.action_spec
        if not _relative(arguments):  # action_spec always gives the bounds of relative actions
            low, high = np.full_like(low, -np.inf), np.full_like(high, np.inf)
        self.action_space = SimpleNamespace(low=low, high=high, shape=low.shape, dtype=np.dtype(np.float64))

    def reset(self, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Start the episode of this seed."""
        return reset_by_seed(self._simulator, seed), {}

    def step(self, action: NDArray[np.floating]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Hold ``action`` for one control step."""
        observation, reward, _, info = self._simulator.step(action)
        return observation, reward, False, False, info | {"success": bool(self._simulator.is_success()["task"])}

    def render(self) -> NDArray[np.uint8]:
        """Draw the scene: (256, 256, 3)."""
        return self._camera.frame()


def _relative(arguments: Mapping[str, Any]) -> bool:
    """Tell whether all controllers take relative actions, changes of the arm's pose; this is the default."""
    given = arguments.get("controller_configs", {})
    controllers = given if isinstance(given, list) else [given]
    return all(controller.get("control_delta", True) for controller in controllers)
