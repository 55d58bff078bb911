"""Parse MuJoCo's binary logs (``.mjl``), in which relay policy learning published its demonstrations.

The format is little-endian: seven int32 (nq, nv, nu, nmocap, nsensordata, nuserdata, bytes of the name), the name of
the model, then one record of float32 for each physics step: time, nq positions, nv velocities, nu controls, 7 nmocap
poses, sensors and user data.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HEADER = struct.Struct("<7i")


@dataclass(frozen=True, eq=False)
class MujocoLog:
    """R records of a log, float32.

    Attributes:
        time: (R,) seconds.
        positions: (R, nq).
        velocities: (R, nv).
        controls: (R, nu).
    """

    time: NDArray[np.float32]
    positions: NDArray[np.float32]
    velocities: NDArray[np.float32]
    controls: NDArray[np.float32]


def parse_log(data: bytes) -> MujocoLog:
    """Parse a whole log.

    Raises:
        ValueError: ``data`` is no such log, or an incomplete one.
    """
    if len(data) < HEADER.size:
        raise ValueError(f"{len(data)} bytes, a header alone has {HEADER.size}")
    *sizes, name_length = HEADER.unpack_from(data)
    nq, nv, nu, nmocap, nsensordata, nuserdata = sizes
    if min(*sizes, name_length) < 0:
        raise ValueError(f"the header gives negative sizes: {sizes}, {name_length}")
    start = HEADER.size + name_length
    width = 1 + nq + nv + nu + 7 * nmocap + nsensordata + nuserdata
    n_bytes = len(data) - start
    if n_bytes <= 0:
        raise ValueError("holds no records")
    if n_bytes % (4 * width):
        raise ValueError(f"the {n_bytes} bytes after the header are no whole number of records of {4 * width} bytes")
    records = np.frombuffer(data, dtype="<f4", offset=start).reshape(-1, width)
    positions, velocities, controls, _ = np.split(records[:, 1:], np.cumsum([nq, nv, nu]), axis=1)
    return MujocoLog(records[:, 0], positions, velocities, controls)
