"""Read Push-T demonstrations of states from each of their formats."""

from pathlib import Path

import numpy as np

from pipeline.tasks.demonstrations import Demonstrations
from pipeline.tasks.formats.arrays import open_arrays
from pipeline.tasks.formats.vectors import read_demonstrations
from pipeline.utils.errors import UserError

WIDTH = {"state": 5, "action": 2}


def read_pusht(path: Path) -> Demonstrations:
    """Read and validate Push-T demonstrations.

    States (N, 5) are agent x, y and block x, y in pixels of the 512 × 512 arena, and the block's angle in radians.
    Actions (N, 2) are the agent's target x, y in the same pixels.

    The format is recognised by the contents, not by the name: a zarr folder or zipped zarr store in the layout of
    Diffusion Policy's replay buffer (``data/state``, ``data/action``, ``meta/episode_ends``; Chi et al., RSS 2023), or
    an npz file with ``state``, ``action`` and ``episode_ends``.

    Raises:
        UserError: as ``open_arrays`` and ``read_demonstrations``; or states or actions have another type or shape.
    """
    recording = open_arrays(path)
    for key, width in WIDTH.items():
        recording.require(key, [key])
        feature = recording.features[key]
        if np.dtype(feature.dtype).kind != "f" or feature.shape != (width,):
            given = f"{feature.dtype} {('N', *feature.shape)}"
            raise UserError(f"{path}: array {key} is {given}, expected floating point (N, {width})")
    return read_demonstrations(recording, ["state"], "action")
