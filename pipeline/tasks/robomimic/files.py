"""Read Robomimic's demonstration files (HDF5) in any public form; write them in the form with absolute actions.

A file holds a group ``data`` with the attributes ``env_args`` (JSON: task, simulator's version, robots, controller) and
``total`` (steps). In it is a group ``demo_<i>`` per episode, with ``actions``, ``states``, ``rewards``, ``dones`` and
``obs/<key>``, one row per step, and the attributes ``num_samples`` and ``model_file`` (the simulated scene as XML).

robomimic itself reads the settings, h5py the arrays. robomimic's ``SequenceDataset`` is not used: it returns windows
padded beyond an episode's end, and padding must not become data here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.demonstrations import Demonstrations, read_episodes
from pipeline.tasks.robomimic.actions import FILE_ACTION, absolute_actions, are_absolute, policy_actions
from pipeline.tasks.robomimic.env import arm_poses, observation_keys
from pipeline.tasks.robomimic.settings import check_env_args
from pipeline.tasks.robomimic.simulator import ARMS, Task, env_arguments
from pipeline.utils.atomic import replacing
from pipeline.utils.errors import UserError

Array = NDArray[np.float64]

_DEMO = re.compile(r"demo_(\d+)")
_ASSETS = re.compile(r'(file=")[^"]*/(?=robosuite/models/)')
_BLANK = re.compile(r">\s+<")


class Episode(Protocol):
    """An episode of T steps to write, such as ``pipeline.experts.episode.ExpertEpisode``."""

    @property
    def observations(self) -> Array:
        """(T, S) raw observations before each action."""

    @property
    def actions(self) -> NDArray[np.floating]:
        """(T, 7 per arm), absolute, with axis-angle."""

    @property
    def success(self) -> bool:
        """True if the last action solves the task."""

    @property
    def states(self) -> Array | None:
        """(T, …) flattened states of the simulator before each action."""

    @property
    def extras(self) -> Mapping[str, str]:
        """``model_file``: the simulated scene as XML."""


def read_robomimic(path: Path, task: Task) -> Demonstrations:
    """Read and validate the demonstrations of ``task``: raw observations (N, S), actions as a policy gives them.

    Absolute actions (diffusion_policy's ``low_dim_abs.hdf5``) are kept. Relative actions (robomimic's
    ``low_dim_v141.hdf5``) are converted by ``absolute_actions``. If ``control_delta`` is false, actions are absolute.
    Otherwise the actions themselves tell which they are, since ``low_dim_abs.hdf5`` has the settings of the relative
    file from which it was made.

    An episode is left out with a warning if a data set in it is missing, damaged, of another type or shape, or holds
    NaN or infinity.

    Raises:
        UserError: the file is absent or incomplete, lacks a group or attribute, has no usable episode, or was recorded
            with another task, simulator's version, robot or controller.
    """
    import h5py

    if not path.is_file():
        raise UserError(f"{path}: does not exist; expected Robomimic demonstrations of {task} (HDF5)")
    try:
        with h5py.File(path, "r") as file:
            settings = _settings(path, file)
            check_env_args(path, settings, task)
            names = sorted(filter(_DEMO.fullmatch, file["data"]), key=lambda name: int(name.removeprefix("demo_")))
            readers = {name: partial(_read_episode, path, file["data"], name, task) for name in names}
            episodes = list(read_episodes(path, readers).values())
    except (OSError, RuntimeError) as error:  # h5py raises these for truncated and damaged files
        raise UserError(f"{path}: is not a whole HDF5 file: {_line(error)}") from error
    if not episodes:
        raise UserError(f"{path}: group data holds no episodes demo_0, demo_1, …")
    actions = _absolute(task, settings, [actions for _, actions in episodes], [observed for observed, _ in episodes])
    return Demonstrations(
        state=np.concatenate([observed for observed, _ in episodes]).astype(np.float32),
        action=policy_actions(np.concatenate(actions)).astype(np.float32),
        episode_ends=np.cumsum([len(episode) for episode in actions], dtype=np.int64),
    )


def _settings(path: Path, file: Any) -> Mapping[str, Any]:
    if "data" not in file or "env_args" not in file["data"].attrs:
        raise UserError(f"{path}: has no group data with attribute env_args; expected a Robomimic file")
    with redirect_stdout(StringIO()):  # robomimic prints advice on a private macro file
        from robomimic.utils.file_utils import get_env_metadata_from_dataset
    try:
        settings = get_env_metadata_from_dataset(str(path))
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"{path}: attribute env_args of group data is no JSON: {_line(error)}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: attribute env_args of group data is {settings!r}, expected a JSON object")
    return settings


def _read_episode(path: Path, data: Any, name: str, task: Task) -> tuple[Array, Array]:
    try:
        demo = data[name]
        actions = _read_rows(path, demo, "actions", FILE_ACTION * ARMS[task])
        observed = [_read_rows(path, demo, f"obs/{key}", width) for key, width in observation_keys(task).items()]
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: data/{name} cannot be read: {_line(error)}") from error
    for key, rows in zip(observation_keys(task), observed, strict=True):
        if len(rows) != len(actions):
            name = f"{demo.name[1:]}/obs/{key}"
            raise UserError(f"{path}: {name} has {len(rows)} rows, expected {len(actions)} as actions")
    return np.concatenate(observed, axis=1), actions


def _read_rows(path: Path, demo: Any, key: str, width: int) -> Array:
    name = f"{demo.name[1:]}/{key}"
    array = demo.get(key)
    if getattr(array, "shape", None) is None:
        raise UserError(f"{path}: data set {name} is missing")
    if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] != width or not len(array):
        raise UserError(f"{path}: {name} is {array.dtype} {array.shape}, expected floating point (T, {width}), T ≥ 1")
    rows = array[()].astype(np.float64)
    if not np.isfinite(rows).all():
        raise UserError(f"{path}: {name} holds NaN or infinity, first in row {np.isfinite(rows).all(1).argmin()}")
    return rows


def _absolute(task: Task, settings: Mapping[str, Any], actions: list[Array], observed: list[Array]) -> list[Array]:
    controllers = settings["env_kwargs"]["controller_configs"]
    controller = controllers[0] if isinstance(controllers, list) else controllers
    poses = [arm_poses(rows, task) for rows in observed]
    positions = np.concatenate([position for position, _ in poses])
    if controller.get("control_delta") is False or are_absolute(np.concatenate(actions), positions):
        return actions
    return [absolute_actions(action, *pose) for action, pose in zip(actions, poses, strict=True)]


def write_robomimic(path: Path, task: Task, episodes: Sequence[Episode]) -> None:
    """Write ``episodes`` of ``task`` to ``path`` in the public form, with absolute actions, atomically.

    Equal episodes give equal bytes. Only the observations of the raw observation are written, without ``next_obs``. The
    reward is 1 in the last step of a solved episode, else 0. Observations, and states after the first, are rounded to
    single precision but stored in the public type of 64 bits. This halves the file; training uses single precision
    anyway, and replays need only the first state and the actions.

    Raises:
        ValueError: an episode lacks its states or its scene.
    """
    import h5py

    # For arrays this small, the bookkeeping of the HDF5 1.10 format takes a tenth of the bytes of the oldest format.
    with replacing(path) as temporary, h5py.File(temporary, "w", libver=("v110", "v110")) as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(env_arguments(task), indent=4)
        data.attrs["total"] = sum(len(episode.actions) for episode in episodes)
        for index, episode in enumerate(episodes):
            _write_episode(data.create_group(f"demo_{index}"), task, episode)


def _write_episode(demo: Any, task: Task, episode: Episode) -> None:
    if episode.states is None or "model_file" not in episode.extras:
        raise ValueError(f"{demo.name}: an episode in a Robomimic file needs states and extras['model_file']")
    demo.attrs["model_file"] = portable_model(episode.extras["model_file"])
    demo.attrs["num_samples"] = len(episode.actions)
    ends = np.zeros(len(episode.actions), dtype=np.int64)
    ends[-1] = 1
    arrays: dict[str, NDArray[np.generic]] = {
        "actions": np.asarray(episode.actions, dtype=np.float64),
        "states": np.concatenate([episode.states[:1], _rounded(episode.states[1:])]),
        "rewards": (ends * episode.success).astype(np.float64),
        "dones": ends,
    }
    keys = observation_keys(task)
    columns = np.split(_rounded(episode.observations), np.cumsum(list(keys.values()))[:-1], axis=1)
    arrays |= {f"obs/{key}": column for key, column in zip(keys, columns, strict=True)}
    for name, array in arrays.items():
        demo.create_dataset(
            name,
            data=array,
            chunks=array.shape,
            compression="gzip",
            compression_opts=9,
            shuffle=True,
            track_times=False,
        )


def _rounded(array: Array) -> Array:
    return array.astype(np.float32).astype(np.float64)


def portable_model(xml: str) -> str:
    """Strip indentation from a scene's XML, and this machine's paths of robosuite's meshes and textures.

    robosuite always looks for them in its own folder (``edit_model_xml``).
    """
    return _BLANK.sub("><", _ASSETS.sub(r"\1", xml))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
