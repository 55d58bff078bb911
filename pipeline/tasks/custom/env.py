"""Adapt any gymnasium environment to this project's rollouts: flat observations, scores from 0 to 1, one seed."""

import contextlib
import importlib
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.camera import CHANNELS, Camera
from pipeline.tasks.custom.settings import Environment
from pipeline.tasks.vector import Transition
from pipeline.utils.errors import UserError

LONGEST_VECTOR = 1000
"""An observation with more numbers is taken for a picture."""

WHERE = "custom.environment"
PREFIX = "robosuite/"
"""Prefix of the ids of robosuite's environments."""


class GymnasiumEnv:
    """One environment, a ``pipeline.tasks.vector.Env``.

    With ``success``, the score is 1 in the step that solves the task; this step ends the episode. With ``returns``, the
    score is 0 until the last step; there it is the episode's return, scaled so that the two ``returns`` give 0 and 1.
    Actions are clipped to the environment's bounds.

    Attributes:
        observation_dim: size of the observed vector; the pixels of a camera's picture follow it.
        low, high: (A,) the bounds of actions; infinite if there are none.
        rate: control steps per second, if the environment gives it; else 1.
        observed: the environment's own observation, whole.
    """

    def __init__(self, settings: Environment, max_steps: int) -> None:
        """Make the environment; its episodes end after ``max_steps`` control steps at the latest.

        Raises:
            UserError: it cannot be made, its observations differ from ``settings``, or its actions are no box.
        """
        self._settings = settings
        self._env = make(settings, 0)
        self.rate = float(getattr(self._env, "metadata", {}).get("render_fps") or 1)
        self.observed: Any = None
        self.observation_dim = _dim(self._env.observation_space, settings)
        self._camera = _camera(self._env.observation_space, settings, self.observation_dim)
        self._actions: Any = self._env.action_space
        if not hasattr(self._actions, "low") or np.dtype(self._actions.dtype).kind != "f":
            raise UserError(f"{WHERE}.id: {settings.id} has actions {self._actions}, allowed: a Box of real numbers")
        self.low, self.high = self._actions.low.ravel(), self._actions.high.ravel()
        self._max_steps = max_steps
        self._steps, self._return = 0, 0.0

    def reset(self, seed: int) -> NDArray[np.float64]:
        """Start the episode of this seed and return its first observation (D,)."""
        if self._settings.seed_argument:
            self._env.close()
            self._env = make(self._settings, seed)
        self.observed, _ = self._env.reset(seed=seed)
        self._steps, self._return = 0, 0.0
        return self._raw()

    def step(self, action: NDArray[np.floating]) -> Transition:
        """Hold ``action`` (A,) for one control step.

        Raises:
            UserError: ``info`` lacks the key that ``success`` names.
        """
        bounded = np.clip(np.asarray(action), self.low, self.high).astype(self._actions.dtype)
        self.observed, reward, terminated, truncated, info = self._env.step(bounded.reshape(self._actions.shape))
        self._steps += 1
        self._return += float(reward)
        success = self._settings.success is not None and self._solved(info)
        done = bool(success or terminated or truncated or self._steps >= self._max_steps)
        score = float(success) if self._settings.returns is None else self._scaled() if done else 0.0
        return Transition(self._raw(), score, success, done)

    def render(self) -> NDArray[np.uint8]:
        """Draw the scene: (H, W, 3).

        Raises:
            UserError: the environment draws no such picture.
        """
        os.environ.setdefault("MUJOCO_GL", "egl")
        frame = self._env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise UserError(f"{WHERE}.render_mode: {self._settings.id} draws {type(frame).__name__}, not (H, W, 3)")
        return frame.astype(np.uint8)

    def _raw(self) -> NDArray[np.float64]:
        numbers = flat(self.observed, self._settings.observation)
        if self._camera is None:
            return numbers
        (key,) = self._settings.image
        return self._camera.observed(numbers, np.asarray(_at(self.observed, key)))

    def _solved(self, info: dict[str, Any]) -> bool:
        if self._settings.success not in info:
            allowed = ", ".join(map(str, info)) or "nothing"
            raise UserError(f"{WHERE}.success: given {self._settings.success!r}, allowed: a key of info: {allowed}")
        return bool(info[self._settings.success])

    def _scaled(self) -> float:
        low, high = self._settings.returns or (0.0, 1.0)
        return float(np.clip((self._return - low) / (high - low), 0.0, 1.0))


def make(settings: Environment, seed: int) -> Any:
    """Make the gymnasium environment, without its own limit of steps.

    Args:
        seed: the seed of the first episode, if the environment takes it as an argument.

    Raises:
        UserError: its module cannot be imported, its id is unknown, or it cannot be made from its arguments.
    """
    if settings.id.startswith(PREFIX):
        return _made_by_robosuite(settings)
    import gymnasium

    if settings.module:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # some packages print advertisements
                importlib.import_module(settings.module)
        except Exception as error:  # a foreign module may raise anything
            raise UserError(f"{WHERE}.module: {settings.module!r} cannot be imported: {_line(error)}") from error
    arguments = {"render_mode": settings.render_mode} if settings.render_mode else {}
    arguments |= settings.arguments | ({settings.seed_argument: seed} if settings.seed_argument else {})
    try:
        return gymnasium.make(settings.id, max_episode_steps=-1, disable_env_checker=True, **arguments)
    except (gymnasium.error.UnregisteredEnv, ModuleNotFoundError) as error:
        remedy = "" if settings.module else f"; {WHERE}.module may name a module that makes it known"
        raise UserError(f"{WHERE}.id: given {settings.id!r}, which is unknown: {_line(error)}{remedy}") from error
    except Exception as error:  # a foreign environment may raise anything
        raise UserError(f"{WHERE}: {settings.id} cannot be made: {_line(error)}") from error


def _made_by_robosuite(settings: Environment) -> Any:
    from pipeline.tasks.custom.robosuite import Robosuite

    try:
        return Robosuite(settings.id.removeprefix(PREFIX), settings.arguments)
    except Exception as error:  # robosuite has no exceptions of its own
        raise UserError(f"{WHERE}: {settings.id} cannot be made: {_line(error)}") from error


def _dim(space: Any, settings: Environment) -> int:
    """Count the numbers of an observation; raises ``UserError`` if the observations differ from ``settings``."""
    where, keys = f"{WHERE}.observation", settings.observation
    there = list(_leaves(space))
    if not keys and [name for name, _ in there] != [""]:
        names = ", ".join(name for name, _ in there)
        raise UserError(f"{where}: given none, allowed: keys of the observations of {settings.id}: {names}")
    spaces = dict(there)
    for key in keys or [""]:
        if key not in spaces:
            allowed = "none, they are one array" if list(spaces) == [""] else f"keys of them: {', '.join(spaces)}"
            raise UserError(f"{where}: given {key!r}, which observations of {settings.id} lack; allowed: {allowed}")
        size = _size(spaces[key])
        if not 0 < size <= LONGEST_VECTOR:
            raise UserError(f"{where}: {key or 'the observation'} of {settings.id} is {spaces[key]}, no vector")
    return sum(_size(spaces[key]) for key in keys or [""])


def _camera(space: Any, settings: Environment, numbers: int) -> Camera | None:
    """Make the camera of the observed pictures, if any; raises ``UserError`` if its key holds no pictures."""
    pictures = {
        name: part
        for name, part in _leaves(space)
        if part.shape is not None and len(part.shape) == 3 and part.shape[2] == CHANNELS and part.dtype == np.uint8
    }
    for key, side in settings.image.items():
        if key not in pictures:
            allowed = f"pictures, uint8 (H, W, 3), of {settings.id}: {', '.join(pictures) or 'it has none'}"
            raise UserError(f"{WHERE}.image: given {key!r}, allowed: {allowed}")
        return Camera(numbers, side)
    return None


def _leaves(space: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Yield path and space of every part of a space that is no dictionary."""
    if not hasattr(space, "items"):
        yield name, space
        return
    for key, part in space.items():
        yield from _leaves(part, f"{name}/{key}".removeprefix("/"))


def _size(space: Any) -> int:
    """Count the numbers in an observation; 0 if it has none, or no fixed number of them."""
    if space.shape is None or space.dtype is None or np.dtype(space.dtype).kind not in "biuf":
        return 0
    return int(np.prod(space.shape))


def flat(observation: Any, keys: Sequence[str]) -> NDArray[np.float64]:
    """Flatten an observation, or its parts under ``keys`` in their order, into one vector (D,)."""
    parts = [_at(observation, key) for key in keys] if keys else [observation]
    return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts])


def _at(observation: Any, key: str) -> Any:
    for part in key.split("/"):
        observation = observation[part]
    return observation


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
