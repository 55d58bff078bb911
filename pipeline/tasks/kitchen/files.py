"""Read Franka Kitchen demonstrations in each public form, recognised by content, and write one of these forms.

Observations (60) and actions (9) are those of ``pipeline.tasks.kitchen``. The goal, the last 30 columns, is masked with
zeros, as in the task.
"""

import io
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.demonstrations import Demonstrations, read_episodes
from pipeline.tasks.kitchen.env import (
    ACTION_DIM,
    CONTROL_SECONDS,
    FRAME_SKIP,
    GOAL_DIM,
    MAX_VELOCITY,
    POSITION_DIM,
    ROBOT_DIM,
    STATE_DIM,
)
from pipeline.tasks.kitchen.log import parse_log
from pipeline.utils.atomic import replacing
from pipeline.utils.errors import UserError

OBSERVATIONS = "observations_seq.npy"
ACTIONS = "actions_seq.npy"
MASK = "existence_mask.npy"
SEQUENCES = (OBSERVATIONS, ACTIONS, MASK)
MINARI = "main_data.hdf5"

LARGEST_LOG_ACTION = 0.999  # the published parser of the logs clips actions at this value
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)

Episode = tuple[NDArray[np.floating], NDArray[np.floating]]
"""Observations (T, at least 30 columns) and actions (T, 9)."""


def read_kitchen(path: Path) -> Demonstrations:
    """Read and validate Franka Kitchen demonstrations.

    The files inside, at any depth, tell the form. The first of these that fits is read:

    1. ``observations_seq.npy`` (T, N, 60), ``actions_seq.npy`` (T, N, 9) and ``existence_mask.npy`` (T, N), in a folder
       or zip (Behavior Transformer, Shafiullah et al. 2022; Diffusion Policy; officially T = 409, N = 566). Steps not
       marked by the mask are padding and are left out. The published files have steps as the first axis; Diffusion
       Policy reads them as if episodes came first, and other files are stored so. The mask tells the axis of steps: in
       an episode no marked step follows an unmarked one. If both axes fit, the arm moves less along the steps.
    2. ``.mjl`` logs of relay policy learning, one per episode, in a folder or zip. Every 40th record is a control step.
       As in the published parser, an action is the velocity from the logged position to the control, divided by
       2 rad/s and clipped to ±0.999, and the last control step has no action. Unlike there, positions are the logged
       ones, not those of a playback with sensor noise.
    3. A folder of a Minari data set (D4RL/kitchen). Of its 59 numbers, 0 to 8 and 18 to 38 are the positions.

    A log, or an episode of a Minari data set, that is cut short or otherwise unusable is left out with a warning.

    Raises:
        UserError: the path is absent or of no such form; a file is missing, truncated, or holds arrays of another
            type or shape, NaN or infinity, or an episode without steps; or no log or episode is usable.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist; expected Kitchen demonstrations: {_FORMS}")
    files = _Files(path)
    if any(PurePosixPath(name).name in SEQUENCES for name in files.names):
        episodes = _read_sequences(files)
    elif logs := [name for name in files.names if name.endswith(".mjl")]:
        episodes = read_episodes(path, {f"{path}/{name}": partial(_read_log, files, name) for name in logs})
    elif path.is_dir() and any(PurePosixPath(name).name == MINARI for name in files.names):
        episodes = _read_minari(files)
    else:
        raise UserError(f"{path}: holds no Kitchen demonstrations; expected {_FORMS}")
    return _assembled(path, episodes)


def write_kitchen(
    path: Path, observations: Sequence[NDArray[np.floating]], actions: Sequence[NDArray[np.floating]]
) -> None:
    """Write episodes in the first public form, as a zip file, atomically; equal episodes give equal bytes.

    Arrays are float32, since every published reader casts to it. The mask holds 0 and 1.

    Args:
        path: the zip file.
        observations: one array (T_i, 60) per episode.
        actions: one array (T_i, 9) per episode.

    Raises:
        ValueError: there is no episode, or one has other shapes.
    """
    lengths = [len(episode) for episode in actions]
    shapes_fit = len(observations) == len(actions) > 0 and all(
        length > 0 and o.shape == (length, STATE_DIM) and a.shape == (length, ACTION_DIM)
        for length, o, a in zip(lengths, observations, actions, strict=True)
    )
    if not shapes_fit:
        raise ValueError(f"episodes must be (T, {STATE_DIM}) observations with (T, {ACTION_DIM}) actions, T ≥ 1")
    mask = (np.arange(max(lengths))[:, None] < np.array(lengths)).astype(np.float32)
    arrays = {OBSERVATIONS: _padded(observations), ACTIONS: _padded(actions), MASK: mask}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            entry = zipfile.ZipInfo(name, _ZIP_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, buffer.getvalue())


_FORMS = f"a folder or zip with {', '.join(SEQUENCES)} or with .mjl logs, or the folder of a Minari data set"


class _Files:
    """The files of a folder or zip archive by name, without hidden files, which macOS adds to archives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        else:
            try:
                with zipfile.ZipFile(path) as archive:
                    names = [name for name in archive.namelist() if not name.endswith("/")]
            except zipfile.BadZipFile as error:
                raise UserError(f"{path}: is neither a folder nor a whole zip file ({error})") from error
        self.names = sorted(name for name in names if not PurePosixPath(name).name.startswith("."))

    def find(self, basename: str) -> str:
        """Find the only file of this name, in any folder; raises ``UserError`` if there is not exactly one."""
        found = [name for name in self.names if PurePosixPath(name).name == basename]
        if len(found) != 1:
            given = f"occurs {len(found)} times ({', '.join(found)})" if found else "is missing"
            raise UserError(f"{self.path}: {basename} {given}, expected once")
        return found[0]

    def read(self, name: str) -> bytes:
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{self.path}/{name}: cannot be read: {_one_line(error)}") from error


def _read_sequences(files: _Files) -> dict[str, Episode]:
    observations, actions, marks = (_read_npy(files, files.find(name)) for name in SEQUENCES)
    for name, array, width in ((OBSERVATIONS, observations, STATE_DIM), (ACTIONS, actions, ACTION_DIM)):
        if array.dtype.kind != "f":
            raise UserError(f"{files.path}: {name} has dtype {array.dtype}, expected floating point")
        if array.ndim != 3 or array.shape[2] != width or not array.size:
            raise UserError(f"{files.path}: {name} has shape {array.shape}, expected (T, N, {width})")
    for name, array in ((ACTIONS, actions), (MASK, marks)):
        if array.shape[:2] != observations.shape[:2] or (name == MASK and array.ndim != 2):
            raise UserError(f"{files.path}: {name} has shape {array.shape}, {OBSERVATIONS} {observations.shape}")
    if marks.dtype.kind not in "biuf" or not np.isin(marks, (0, 1)).all():
        raise UserError(f"{files.path}: {MASK} must hold 0 and 1 only")
    mask = marks.astype(bool)
    if _time_axis(files.path, mask, observations) == 0:
        observations, actions, mask = (array.swapaxes(0, 1) for array in (observations, actions, mask))
    names = [f"{files.path}: episode {i}" for i in range(len(mask))]
    return {
        name: _checked(name, observations[i, kept], actions[i, kept])
        for i, (name, kept) in enumerate(zip(names, mask, strict=True))
    }


def _read_npy(files: _Files, name: str) -> NDArray[Any]:
    try:
        array = np.load(io.BytesIO(files.read(name)), allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise UserError(f"{files.path}/{name}: cannot be read: {_one_line(error)}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{files.path}/{name}: is an archive of arrays, expected one array")
    return array


def _time_axis(path: Path, mask: NDArray[np.bool_], observations: NDArray[Any]) -> int:
    axes = [axis for axis in (0, 1) if not (np.diff(mask.astype(np.int8), axis=axis) > 0).any()]
    if not axes:
        raise UserError(f"{path}: {MASK} marks steps after unmarked ones; padding must follow its episode")
    return min(axes, key=lambda axis: _movement(mask, observations, axis))


def _movement(mask: NDArray[np.bool_], observations: NDArray[Any], axis: int) -> float:
    """Return the mean change of the arm's joints between marked neighbours along ``axis``; infinite if none."""
    arm = np.moveaxis(observations[..., :ROBOT_DIM], axis, 0)
    marked = np.moveaxis(mask, axis, 0)
    neighbours = marked[1:] & marked[:-1]
    return float(np.abs(arm[1:] - arm[:-1])[neighbours].mean()) if neighbours.any() else np.inf


def _read_log(files: _Files, name: str) -> Episode:
    try:
        log = parse_log(files.read(name))
    except (ValueError, OSError) as error:
        raise UserError(f"{files.path}/{name}: is not a whole .mjl log: {error}") from error
    nq, nu = log.positions.shape[1], log.controls.shape[1]
    if nq < POSITION_DIM or nu != ACTION_DIM:
        raise UserError(
            f"{files.path}/{name}: logs {nq} positions and {nu} controls, expected at least {POSITION_DIM}"
            f" and exactly {ACTION_DIM}"
        )
    positions, controls = log.positions[::FRAME_SKIP], log.controls[::FRAME_SKIP]
    # The elements' joints come last: in a recording with a ghost arm, the ghost's joints lie in between.
    observations = np.concatenate([positions[:, :ROBOT_DIM], positions[:, ROBOT_DIM - POSITION_DIM :]], axis=1)
    actions = (controls - positions[:, :ROBOT_DIM]) / np.float32(CONTROL_SECONDS * MAX_VELOCITY)
    clipped = np.clip(actions[:-1], -LARGEST_LOG_ACTION, LARGEST_LOG_ACTION)
    return _checked(f"{files.path}/{name}", observations[:-1], clipped)


def _read_minari(files: _Files) -> dict[str, Episode]:
    file = files.path / files.find(MINARI)
    from minari import MinariDataset

    try:
        dataset = MinariDataset(file.parent)
        indices = [int(index) for index in dataset.episode_indices]
    except Exception as error:  # minari passes on the errors of h5py, json and gymnasium
        raise _no_minari(file, error) from error
    names = {f"{file}: episode {index}": index for index in indices}
    readers = {name: partial(_read_minari_episode, dataset, file, name, index) for name, index in names.items()}
    return read_episodes(file, readers)


def _read_minari_episode(dataset: Any, file: Path, name: str, index: int) -> Episode:
    try:
        (episode,) = dataset.iterate_episodes([index])
        sensed, actions = np.asarray(episode.observations["observation"]), np.asarray(episode.actions)
    except Exception as error:  # as above
        raise _no_minari(file, error) from error
    if sensed.ndim != 2 or sensed.shape[1] != 59 or len(sensed) != len(actions) + 1:
        raise UserError(f"{name} has observations {sensed.shape} and actions {actions.shape}")
    positions = np.concatenate([sensed[:-1, :9], sensed[:-1, 18:39]], axis=1)
    return _checked(name, positions, actions)


def _no_minari(file: Path, error: Exception) -> UserError:
    return UserError(f"{file}: is no whole Minari data set of FrankaKitchen-v1: {_one_line(error)}")


def _checked(name: str, observations: NDArray[np.floating], actions: NDArray[np.floating]) -> Episode:
    if not len(actions):
        raise UserError(f"{name} has no steps")
    if actions.shape != (len(observations), ACTION_DIM):
        raise UserError(f"{name} has actions {actions.shape}, expected {(len(observations), ACTION_DIM)}")
    finite = np.isfinite(observations).all(axis=1) & np.isfinite(actions).all(axis=1)
    if not finite.all():
        raise UserError(f"{name} holds NaN or infinity, first at step {finite.argmin()}")
    return observations, actions


def _assembled(path: Path, episodes: dict[str, Episode]) -> Demonstrations:
    if not episodes:
        raise UserError(f"{path}: holds no episodes")
    state = np.concatenate([observations[:, :POSITION_DIM] for observations, _ in episodes.values()])
    action = np.concatenate([actions for _, actions in episodes.values()])
    return Demonstrations(
        state=np.pad(state.astype(np.float32), ((0, 0), (0, GOAL_DIM))),
        action=action.astype(np.float32),
        episode_ends=np.cumsum([len(actions) for _, actions in episodes.values()], dtype=np.int64),
    )


def _padded(episodes: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    """Pad N episodes (T_i, D) with zeros to (T, N, D)."""
    padded = np.zeros((max(map(len, episodes)), len(episodes), episodes[0].shape[1]), np.float32)
    for i, episode in enumerate(episodes):
        padded[: len(episode), i] = episode
    return padded


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
