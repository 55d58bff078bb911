"""Simulate Push-T: push a T-shaped block onto its goal pose with a round agent (Florence et al. 2021; Chi et al. 2023).

The simulator is gym-pusht, a port of diffusion_policy's. State: agent x, y, block x, y in a 512 x 512 world, block
angle in radians, in [0, 2π). Action: the target position of the agent, held for 0.1 s by a PD controller.
"""

import math
import os
from typing import Any, Literal, get_args

import numpy as np

from pipeline.tasks.vector import Transition

Starts = Literal["a", "b"]
ResetOrder = Literal["exact", "legacy"]
ObservationKind = Literal["pose", "keypoints", "agent"]

MAX_STEPS = 300
ACTION_DIM = 2
OBSERVATION_DIM: dict[ObservationKind, int] = {"pose": 6, "keypoints": 18, "agent": 2}
GOAL_POSE = (256.0, 256.0, math.pi / 4)

_BLOCK_RANGE: dict[Starts, tuple[int, int]] = {"a": (200, 300), "b": (100, 400)}

# The T in the block's own frame, bar and stem: (low x, low y, high x, high y), and their corners in gym-pusht's order.
_BOXES = ((-60.0, 0.0, 60.0, 30.0), (-15.0, 30.0, 15.0, 120.0))
_RECTANGLES = tuple([(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, y0, x1, y1 in _BOXES)
_CORNERS = np.array(_RECTANGLES).reshape(8, 2)
_GOAL_COS, _GOAL_SIN = math.cos(GOAL_POSE[2]), math.sin(GOAL_POSE[2])
_AREA = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in _BOXES)

_Polygon = list[tuple[float, float]]


def initial_state(starts: Starts, seed: int) -> np.ndarray:
    """Draw the initial state (5,), float64, of the episode with this seed.

    The generator and the order of its draws are diffusion_policy's, so that equal seeds give equal states (``b``).
    """
    generator = np.random.RandomState(seed)
    low, high = _BLOCK_RANGE[starts]
    agent = generator.randint(50, 450), generator.randint(50, 450)
    block = generator.randint(low, high), generator.randint(low, high)
    return np.array([*agent, *block, generator.randn() * 2 * np.pi - np.pi])


class PushT:
    """One Push-T simulation. Score: covered share of the goal / 0.95, at most 1; success: more than 0.95 is covered."""

    def __init__(self, max_steps: int = MAX_STEPS, frame_size: int = 256) -> None:
        """Make the simulation; ``frame_size`` is the width and height of rendered frames in pixels."""
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        import gym_pusht  # noqa: F401  (registers the environment)
        import gymnasium

        # Only `unwrapped` is used, since the wrappers' checks and their limit of 300 steps are handled here.
        env: Any = gymnasium.make(
            "gym_pusht/PushT-v0",
            obs_type="state",
            visualization_width=frame_size,
            visualization_height=frame_size,
            disable_env_checker=True,
        ).unwrapped
        env._handle_collision = lambda *_: None  # it counts contacts, which nothing here reads
        self._env = env
        self._max_steps = max_steps
        self._steps = 0
        self._last_coverage = ((math.nan, math.nan, math.nan), math.nan)

    def reset(self, state: np.ndarray, order: ResetOrder = "exact") -> np.ndarray:
        """Start an episode at ``state`` (5,) and return the observed state (5,), float64.

        gym-pusht sets the block's position, then its angle. This turns the block about its centre of mass and so moves
        its position. ``legacy`` does the same. ``exact`` sets the angle first, so that the block lies at ``state``.
        Both then step the physics once (0.01 s), which pushes the block aside if the agent overlaps it.

        Raises:
            ValueError: ``order`` is unknown.
        """
        if order not in get_args(ResetOrder):
            raise ValueError(f"reset order is {order!r}, must be one of {get_args(ResetOrder)}")
        env = self._env
        env._last_action = None
        self._steps = 0
        if order == "legacy":
            return env.reset(options={"reset_to_state": state})[0]
        # A new space, as in gym-pusht's reset(). Its reset() also sets and steps a state, whose contacts would remain.
        env._setup()
        env.agent.position = list(state[:2])
        env.block.angle = state[4]
        env.block.position = list(state[2:4])
        env.space.step(env.dt)
        return env.get_obs()

    def step(self, action: np.ndarray) -> Transition:
        """Pull the agent towards ``action`` (2,), world coordinates, for one control step of 0.1 s."""
        env = self._env
        env._last_action = np.asarray(action, dtype=np.float64)
        self._pull(*env._last_action.tolist())
        # gym-pusht's own coverage (shapely) differs in its last bit between instances at the same pose.
        covered = self._coverage((*env.block.position, env.block.angle))
        success = covered > env.success_threshold
        self._steps += 1
        score = min(max(covered / env.success_threshold, 0.0), 1.0)
        return Transition(env.get_obs(), score, success, success or self._steps >= self._max_steps)

    def _pull(self, x: float, y: float) -> None:
        """Run PD controller and physics, bitwise equal to gym-pusht's step(), without its arrays of two numbers."""
        env = self._env
        agent, advance, dt, k_p, k_v = env.agent, env.space.step, env.dt, env.k_p, env.k_v
        hurry = type(agent).velocity.fset  # faster: skips pymunk's check of the attribute's name
        for _ in range(int(1 / (dt * env.control_hz))):
            (px, py), (vx, vy) = agent.position, agent.velocity
            hurry(agent, (vx + (k_p * (x - px) - k_v * vx) * dt, vy + (k_p * (y - py) - k_v * vy) * dt))
            advance(dt)

    def _coverage(self, pose: tuple[float, float, float]) -> float:
        if pose != self._last_coverage[0]:  # a block that is not pushed keeps its pose for many steps
            self._last_coverage = pose, coverage(pose)
        return self._last_coverage[1]

    def render(self) -> np.ndarray:
        """Draw the scene, with the last action as a red cross: (frame_size, frame_size, 3) uint8."""
        return self._env.render()


def coverage(pose: tuple[float, float, float]) -> float:
    """Compute the share of the goal, 0 to 1, that a block at ``pose`` (x, y, angle) covers."""
    # In the goal's frame, the goal's rectangles are parallel to the axes and the block's are rotated.
    x, y = pose[0] - GOAL_POSE[0], pose[1] - GOAL_POSE[1]
    x, y = _GOAL_COS * x + _GOAL_SIN * y, _GOAL_COS * y - _GOAL_SIN * x
    cos, sin = math.cos(pose[2] - GOAL_POSE[2]), math.sin(pose[2] - GOAL_POSE[2])
    covered = 0.0
    for rectangle in _RECTANGLES:
        turned = [(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in rectangle]
        covered += sum([_area(_clip_to_box(turned, box)) for box in _BOXES])
    return covered / _AREA


def _clip_to_box(polygon: _Polygon, box: tuple[float, float, float, float]) -> _Polygon:
    """Clip a convex polygon to an axis-parallel box (Sutherland and Hodgman 1974)."""
    for side, bound in enumerate(box):
        axis = side % 2
        inside = [point[axis] - bound for point in polygon] if side < 2 else [bound - point[axis] for point in polygon]
        if max(inside) < 0:
            return []
        if min(inside) < 0:
            polygon = _clip(polygon, inside)
    return polygon


def _clip(polygon: _Polygon, inside: list[float]) -> _Polygon:
    """Clip a convex polygon to the half-plane where a linear function, ``inside`` at the corners, is not negative."""
    clipped: _Polygon = []
    a, (xa, ya) = inside[0], polygon[0]
    for i in range(1 - len(polygon), 1):  # from the second corner to the last, then the first again
        b, (xb, yb) = inside[i], polygon[i]
        if a >= 0:
            clipped.append((xa, ya))
        if (a < 0) != (b < 0):
            share = a / (a - b)
            clipped.append((xa + share * (xb - xa), ya + share * (yb - ya)))
        a, xa, ya = b, xb, yb
    return clipped


def _area(polygon: _Polygon) -> float:
    """Compute the area of an anticlockwise polygon (the shoelace formula)."""
    following = polygon[1:] + polygon[:1]
    return 0.5 * sum([xa * yb - xb * ya for (xa, ya), (xb, yb) in zip(polygon, following, strict=True)])


def block_keypoints(pose: np.ndarray) -> np.ndarray:
    """Compute the world coordinates (..., 8, 2) of the T's corners from block poses (..., 3): x, y, angle."""
    cos, sin = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    rotation = np.stack([np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)], axis=-2)  # transposed
    return _CORNERS @ rotation + pose[..., None, :2]


def observe(state: np.ndarray, kind: ObservationKind) -> np.ndarray:
    """Compute the observation vectors (..., D), float32, that condition a policy, from states (..., 5).

    ``pose`` (D = 6): agent x, y, block x, y, cosine and sine of the angle, which have no jump at 2π.
    ``keypoints`` (D = 18): agent x, y and the eight corners of the T.
    ``agent`` (D = 2): agent x, y, observed beside an image.

    Raises:
        ValueError: ``kind`` is unknown.
    """
    if kind == "agent":
        return np.asarray(state)[..., :2].astype(np.float32)
    state = np.asarray(state, dtype=np.float64)
    agent, block, angle = state[..., :2], state[..., 2:4], state[..., 4:]
    if kind == "pose":
        parts = [agent, block, np.cos(angle), np.sin(angle)]
    elif kind == "keypoints":
        parts = [agent, block_keypoints(state[..., 2:]).reshape(*state.shape[:-1], 16)]
    else:
        raise ValueError(f"observation kind is {kind!r}, must be one of {get_args(ObservationKind)}")
    return np.concatenate(parts, axis=-1).astype(np.float32)
