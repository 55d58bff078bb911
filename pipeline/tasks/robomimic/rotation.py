"""Convert three-dimensional rotations between axis-angle vectors, matrices, quaternions and six numbers, in float64.

The six numbers are the first two rows of the matrix, as in PyTorch3D and diffusion_policy. Zhou et al. (CVPR 2019)
introduced them with the first two columns. Unlike axis-angle, they are continuous in the rotation.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_TINY = 1e-12  # below this length a vector has no direction


def matrix_from_axis_angle(vectors: NDArray[np.floating]) -> Array:
    """Compute rotation matrices (..., 3, 3) from axis-angle ``vectors`` (..., 3), in radians (Rodrigues' formula)."""
    vectors = np.asarray(vectors, dtype=np.float64)
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    rows = [np.stack(row, axis=-1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    cross = np.stack(rows, axis=-2)
    # sin(a) / a and (1 - cos(a)) / a², both without cancellation near 0.
    first, second = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * cross + second * (cross @ cross)


def axis_angle_from_matrix(matrices: NDArray[np.floating]) -> Array:
    """Compute axis-angle vectors (..., 3), at most π long, of rotation ``matrices`` (..., 3, 3).

    The intermediate quaternion is computed from its largest component (Shepperd 1978), so that the result is as exact
    near 0 and π as elsewhere. A half turn has two vectors; either may be returned.
    """
    m = np.asarray(matrices, dtype=np.float64)
    diagonal = np.diagonal(m, axis1=-2, axis2=-1)
    trace = diagonal.sum(-1)
    x, y, z = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    squares = np.stack([1 + trace, *np.moveaxis(1 + 2 * diagonal - trace[..., None], -1, 0)], axis=-1)
    w2, x2, y2, z2 = np.moveaxis(squares, -1, 0)
    # Four multiples of the quaternion (w, x, y, z): by 4w, 4x, 4y and 4z.
    multiples = [np.stack(row, axis=-1) for row in ((w2, x, y, z), (x, x2, xy, xz), (y, xy, y2, yz), (z, xz, yz, z2))]
    largest = squares.argmax(-1)[..., None, None]
    quaternion = np.take_along_axis(np.stack(multiples, axis=-2), largest, axis=-2)[..., 0, :]
    quaternion = quaternion * np.where(quaternion[..., :1] < 0, -1.0, 1.0)
    quaternion = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    half = np.arctan2(sine, quaternion[..., :1])
    return quaternion[..., 1:] * np.where(sine > _TINY, 2 * half / np.maximum(sine, _TINY), 2.0)


def six_from_matrix(matrices: NDArray[np.floating]) -> Array:
    """Return six numbers (..., 6), the first and the second row, of rotation ``matrices`` (..., 3, 3)."""
    rows: Array = np.asarray(matrices, dtype=np.float64)[..., :2, :]
    return rows.reshape(*rows.shape[:-2], 6)


def matrix_from_six(numbers: NDArray[np.floating]) -> Array:
    """Compute rotation matrices (..., 3, 3) from any six ``numbers`` (..., 6), by Gram and Schmidt's method.

    A row without a direction of its own (zero, or the second parallel to the first) is replaced by a coordinate axis.
    """
    rows: Array = np.asarray(numbers, dtype=np.float64)
    first = _unit(rows[..., :3], np.eye(3)[0])
    least: Array = np.eye(3)[np.abs(first).argmin(-1)]  # the coordinate axis nearest to perpendicular to ``first``
    across = least - (least * first).sum(-1, keepdims=True) * first
    second: Array = rows[..., 3:]
    for _ in range(2):  # once would leave rounding errors if the rows are nearly parallel
        second = second - (second * first).sum(-1, keepdims=True) * first
        second = _unit(second, across / np.linalg.norm(across, axis=-1, keepdims=True))
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def matrix_from_quaternion(quaternions: NDArray[np.floating]) -> Array:
    """Compute rotation matrices (..., 3, 3) of unit ``quaternions`` (..., 4) in the order x, y, z, w."""
    q = np.asarray(quaternions, dtype=np.float64)
    x, y, z, w = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _unit(vectors: NDArray[np.floating], otherwise: NDArray[np.floating]) -> Array:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > _TINY, vectors / np.maximum(length, _TINY), otherwise)
