"""Draw Push-T's camera images from states without a simulator, equal in every pixel to the published demonstrations.

The published images were drawn by pymunk's debug view on a pygame surface of 512 × 512 pixels and shrunk by OpenCV's
bilinear resize (Chi et al. 2023). A shrunk pixel mixes 2 × 2 pixels of the surface. Only these pixels are drawn: 192
rows and columns, the taps. Shapes are filled by the rules of pygame 2.1, the version of the recordings; newer versions
differ. A polygon's edges are rounded towards their upper ends. A thick line is a run of four pixels along the axis that
it crosses.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.pusht.env import GOAL_POSE

SIDE = 96
"""Width and height of an image in pixels."""

_SURFACE = 512
_BATCH = 32  # scenes drawn at once: 20 MB of masks
_EDGE = 2  # radius of outlines and walls
_AGENT = (15, 11)  # radii of the agent and of its lighter inside

_BOXES = np.array([[(-60, 0), (60, 0), (60, 30), (-60, 30)], [(-15, 30), (15, 30), (15, 120), (-15, 120)]], dtype=float)
_WALLS = np.array([[(5, 506), (5, 5)], [(5, 5), (506, 5)], [(506, 5), (506, 506)], [(5, 506), (506, 506)]])

_WHITE, _GOAL, _BLOCK, _OUTLINE, _RIM, _DISC, _WALL = range(7)
_COLOURS = np.array(
    [
        *[(255, 255, 255), (144, 238, 144), (143, 163, 184), (119, 136, 153)],
        *[(65, 105, 225), (78, 126, 255), (211, 211, 211)],
    ]
)

# The centre of pixel i of the image lies at (32 i + 13) / 6 on the surface, between two of its pixels.
_FIRST_TAP = (32 * np.arange(SIDE) + 13) // 6
_TAPS = np.stack([_FIRST_TAP, _FIRST_TAP + 1], axis=1).ravel()
_BLOCK_TAPS, _AGENT_TAPS = 60, 14  # rows and columns that hold the block with its outline, and the agent

_Int = NDArray[np.int64]
_Mask = NDArray[np.bool_]


def render(states: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Draw images (..., 96, 96, 3), RGB, of Push-T's states (..., 5): the goal, the block and the agent, no action.

    Each image depends only on its own state.
    """
    scenes = np.asarray(states, dtype=np.float64).reshape(-1, 5)
    images = np.empty((len(scenes), SIDE, SIDE, 3), dtype=np.uint8)
    for start in range(0, len(scenes), _BATCH):
        images[start : start + _BATCH] = _shrink(_draw(scenes[start : start + _BATCH]))
    return images.reshape(*np.shape(states)[:-1], SIDE, SIDE, 3)


def _draw(states: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Draw the colours (B, 192, 192) of the taps."""
    background, walls = _background()
    surface = np.repeat(background[None], len(states), axis=0)

    corners = _corners(states[:, 2:])
    window, x, y = _window(corners.reshape(len(states), -1, 2).min(axis=1) - _EDGE, _BLOCK_TAPS)
    block = surface[window]
    insides = _filled(_polygon(corners[:, :, None], y), x)
    outlines = _outlined(corners, np.roll(corners, -1, axis=2), x, y)
    for box in range(len(_BOXES)):
        block[insides[:, box]] = _BLOCK
        block[outlines[:, box]] = _OUTLINE
    surface[window] = block

    centre = np.rint(states[:, None, None, :2]).astype(np.int64)
    window, x, y = _window(centre[:, 0, 0] - _AGENT[0], _AGENT_TAPS)
    agent = surface[window]
    for radius, colour in zip(_AGENT, (_RIM, _DISC), strict=True):
        agent[_filled(_circle(centre, radius, y), x)[:, 0]] = colour
    surface[window] = agent

    surface[:, walls] = _WALL
    return surface


@cache
def _background() -> tuple[NDArray[np.uint8], _Mask]:
    """Draw the taps (192, 192) of a scene with the goal only, and the mask of the walls, which cover everything."""
    goal = _filled(_polygon(_corners(np.array(GOAL_POSE)), _TAPS), _TAPS)
    walls = _outlined(_WALLS[:, 0], _WALLS[:, 1], _TAPS, _TAPS)
    return np.where(goal, np.uint8(_GOAL), np.uint8(_WHITE)), walls


def _window(corner: _Int, size: int) -> tuple[tuple[_Int, _Int, _Int], _Int, _Int]:
    """Select ``size`` x ``size`` taps of each scene from ``corner`` (B, 2) on, shifted to stay inside the surface.

    Returns:
        An index of (B, 192, 192), and the surface's x and y there, both (B, 1, 1, size).
    """
    first = np.clip(np.searchsorted(_TAPS, corner), 0, len(_TAPS) - size)
    columns, rows = (first[:, axis, None] + np.arange(size) for axis in (0, 1))
    index = np.arange(len(corner))[:, None, None], rows[:, :, None], columns[:, None, :]
    return index, _TAPS[columns][:, None, None], _TAPS[rows][:, None, None]


def _corners(poses: NDArray[np.float64]) -> _Int:
    """Compute the corners (..., 2, 4, 2) of the block's two boxes, rounded to pixels, from its poses (..., 3)."""
    cos, sin = np.cos(poses[..., 2, None, None]), np.sin(poses[..., 2, None, None])
    x = poses[..., 0, None, None] + cos * _BOXES[..., 0] - sin * _BOXES[..., 1]
    y = poses[..., 1, None, None] + sin * _BOXES[..., 0] + cos * _BOXES[..., 1]
    return np.rint(np.stack([x, y], axis=-1)).astype(np.int64)


# Below, shapes are runs of pixels (2, ..., K, R): the first and the last pixel in each of R rows for each of K shapes.
# An empty run ends before it starts. ``rows`` and ``columns`` are the y and x to draw, (R,) or (B, 1, 1, R).


def _outlined(a: _Int, b: _Int, columns: _Int, rows: _Int) -> _Mask:
    """Compute the mask (..., R, C) of all K of pymunk's fat segments from ``a`` to ``b`` (..., K, 2) together.

    A segment is a thick line, a parallelogram and a circle at both ends.
    """
    sides = np.abs(b - a)
    # pymunk takes both components of the normal as positive. So some parallelograms lean and only the line is visible.
    normal = np.rint(sides[..., ::-1] * (_EDGE / np.hypot(*np.moveaxis(sides, -1, 0)))[..., None]).astype(np.int64)
    leaning = _polygon(np.stack([a - normal, a + normal, b + normal, b - normal], axis=-2), rows)
    steep = (sides[..., 0] <= sides[..., 1])[..., None]
    runs = [leaning, _line(a, b, steep, rows), _circle(a, _EDGE, rows), _circle(b, _EDGE, rows)]
    across = _line(a[..., ::-1], b[..., ::-1], ~steep, columns)
    return _filled(np.concatenate(runs, axis=-2), columns) | np.swapaxes(_filled(across, rows), -1, -2)


def _polygon(points: _Int, rows: _Int) -> _Int:
    """Compute the runs of convex polygons with corners (..., K, V, 2)."""
    start, end = np.roll(points, 1, axis=-2), points
    swap = (start[..., 1] > end[..., 1])[..., None]
    upper, lower = np.where(swap, end, start)[..., None], np.where(swap, start, end)[..., None]
    (x1, y1), (x2, y2) = (np.moveaxis(point, -2, 0) for point in (upper, lower))
    bottom = y2.max(axis=-2, keepdims=True)
    rows = rows[..., None, :]
    meets = (y1 <= rows) & ((y2 > rows) | ((y2 == bottom) & (bottom == rows))) & (y1 < y2)
    x = x1 + np.fix((rows - y1) * (x2 - x1) / np.maximum(y2 - y1, 1)).astype(np.int64)
    return np.stack([np.where(meets, x, _SURFACE).min(axis=-2), np.where(meets, x, -1).max(axis=-2)])


def _line(a: _Int, b: _Int, drawn: _Mask, rows: _Int) -> _Int:
    """Compute the runs of lines four pixels wide from ``a`` to ``b`` (..., K, 2) (Bresenham 1965).

    The lines extend at least as far along y as along x. They are empty where ``drawn`` (..., K, 1) is false.
    """
    (x1, y1), (x2, y2) = (np.moveaxis(point[..., None], -2, 0) for point in (a, b))
    dx, dy = np.abs(x2 - x1), np.maximum(np.abs(y2 - y1), 1)
    meets = drawn & (np.minimum(y1, y2) <= rows) & (np.maximum(y1, y2) >= rows)
    x = x1 - np.sign(x2 - x1) * ((dy // 2 - np.abs(rows - y1) * dx) // dy)
    return np.stack([np.where(meets, x - 1, _SURFACE), np.where(meets, x + 2, -1)])


def _circle(centre: _Int, radius: int, rows: _Int) -> _Int:
    """Compute the runs of discs at ``centre`` (..., K, 2)."""
    x, y = centre[..., 0, None], centre[..., 1, None]
    half = np.concatenate([_half_widths(radius), [0]])[np.clip(rows - y + radius, -1, 2 * radius)]
    return np.stack([np.where(half > 0, x - half, _SURFACE), np.where(half > 0, x + half - 1, -1)])


@cache
def _half_widths(radius: int) -> _Int:
    """Compute half the width of each of a disc's 2 ``radius`` rows, by the midpoint algorithm of pygame."""
    widths = np.zeros(radius, dtype=np.int64)
    x, y, error = 0, radius, 1 - radius
    while x < y:
        if error >= 0:
            y -= 1
            error -= 2 * y
        x += 1
        error += 2 * x + 1
        if error >= 0:
            widths[y - 1] = max(widths[y - 1], x)
        widths[x - 1] = max(widths[x - 1], y)
    return np.concatenate([widths[::-1], widths])


def _filled(runs: _Int, columns: _Int) -> _Mask:
    """Compute the mask (..., R, C) of the pixels that any of the K shapes covers."""
    first, last = runs.astype(np.int16)[..., None]
    x = columns.astype(np.int16)[..., None, :]
    return ((first <= x) & (x <= last)).any(axis=-3)


def _shrink(surface: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrink the colours (B, 192, 192) of the taps to images (B, 96, 96, 3)."""
    n = len(_COLOURS)
    codes = surface.astype(np.uint16)
    pairs = codes[:, :, 0::2] * n + codes[:, :, 1::2]
    blocks = pairs[:, 0::2] * n**2 + pairs[:, 1::2]
    phase = np.arange(SIDE) % 3  # the taps' weights repeat: 16 pixels of the surface are 3 of the image
    return _blends()[3 * phase[:, None] + phase, blocks]


@cache
def _blends() -> NDArray[np.uint8]:
    """Compute the mixed colour (9, 7⁴, 3) of four taps, by their weights and colours, in OpenCV's integers."""
    weights = np.rint(2048 * np.array([[5, 1], [3, 3], [1, 5]]) / 6).astype(np.int64)
    left, right = np.broadcast_arrays(_COLOURS[:, None], _COLOURS)
    across = [(a * left + b * right).reshape(-1, 3) >> 4 for a, b in weights]
    mixed = [((a * row[:, None] >> 16) + (b * row >> 16) + 2) >> 2 for a, b in weights for row in across]
    return np.stack(mixed).reshape(9, -1, 3).astype(np.uint8)
