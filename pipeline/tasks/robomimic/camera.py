"""Draw pictures of a robosuite simulation by MuJoCo's own renderer; only this needs OpenGL (EGL on Linux)."""

import atexit
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAMERA = "agentview"


class Camera:
    """A camera with square pictures, in the scene of a simulator from ``make_simulator``."""

    def __init__(self, simulator: Any, size: int) -> None:
        """Prepare for pictures with ``size`` pixels per side; nothing is drawn yet."""
        self._simulator = simulator
        self._size = size
        self._renderer: Any = None
        self._drawn: Any = None  # the model that the renderer was made for

    def frame(self) -> NDArray[np.uint8]:
        """Draw the scene as it is: (size, size, 3)."""
        import mujoco

        sim = self._simulator.env.sim
        model = sim.model._model
        if self._drawn is not model:  # a reset may have replaced it
            if self._renderer is not None:
                self._renderer.close()
            # On a CPU, shadow maps and several samples per pixel take seconds per frame.
            model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
            self._renderer, self._drawn = mujoco.Renderer(model, self._size, self._size), model
            atexit.register(self._renderer.close)  # to run before MuJoCo's own handler shuts EGL down
        visible = mujoco.MjvOption()
        visible.geomgroup[0] = 0  # group 0 holds the collision shapes, group 1 the visible ones
        self._renderer.update_scene(sim.data._data, CAMERA, visible)
        frame: NDArray[np.uint8] = self._renderer.render()
        return frame
