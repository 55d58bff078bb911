"""Reading demonstrations of any supported format: the format told by content, the keys chosen by the caller."""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.demonstrations import Demonstrations, read_episodes
from pipeline.tasks.formats.arrays import is_npz, open_npz, open_zarr
from pipeline.tasks.formats.lerobot import INFO, open_lerobot
from pipeline.tasks.formats.minari_folder import METADATA, open_minari
from pipeline.tasks.formats.recording import Recording, Rows
from pipeline.tasks.formats.robomimic_hdf5 import open_robomimic
from pipeline.utils.errors import UserError

FORMATS: dict[str, Callable[[Path], Recording]] = {
    "lerobot": open_lerobot,
    "robomimic": open_robomimic,
    "minari": open_minari,
    "zarr": open_zarr,
    "npz": open_npz,
}
EXPECTED = "expected a folder (LeRobotDataset, Minari, zarr) or a file (robomimic HDF5, npz, zarr zip)"
_HDF5, _PARQUET = b"\x89HDF\r\n\x1a\n", b"PAR1"
_ZARR_ROOTS = (".zgroup", "zarr.json")


def open_recording(path: Path, format: str = "auto") -> Recording:
    """Open a data set in any of ``FORMATS``, told by what it holds and not by its name.

    A folder that holds nothing but one folder is taken for that one, as archives leave them.

    Raises:
        UserError: it is absent, damaged, of no such format, or of another one than ``format``.
    """
    place, found = _format_of(path)
    if format not in ("auto", found):
        raise UserError(f"{path}: holds a data set of format {found}, but format says {format}")
    return FORMATS[found](place)


def _format_of(path: Path) -> tuple[Path, str]:
    if path.is_dir():
        return _format_of_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: does not exist; {EXPECTED}")
    with path.open("rb") as file:
        magic = file.read(8)
    if magic.startswith(_HDF5):
        if (path.parent / METADATA).is_file():
            return path.parent, "minari"
        return path, "robomimic"
    if magic.startswith(_PARQUET):
        raise UserError(f"{path}: is one file of a LeRobotDataset; give the folder that holds meta and data")
    if magic.startswith(b"PK"):
        return path, "npz" if is_npz(path) else _format_of_zip(path)
    raise UserError(f"{path}: is of no known format; {EXPECTED}")


def _format_of_zip(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        if any(root in archive.namelist() for root in _ZARR_ROOTS):
            return "zarr"
    raise UserError(f"{path}: is a zip file of neither arrays nor a zarr store; unpack it and give the folder")


def _format_of_folder(path: Path) -> tuple[Path, str]:
    if (path / INFO).is_file():
        return path, "lerobot"
    if any(_is_minari(file) for file in (path / METADATA, path / "data" / METADATA)):
        return path, "minari"
    if any((path / root).is_file() for root in _ZARR_ROOTS):
        return path, "zarr"
    inside = [inner for inner in path.iterdir() if not inner.name.startswith(".")]
    if len(inside) == 1:
        return _format_of(inside[0])
    raise UserError(f"{path}: holds no data set of a known format; {EXPECTED}")


def _is_minari(file: Path) -> bool:
    try:
        return "observation_space" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def read_demonstrations(recording: Recording, observation: Sequence[str], action: str) -> Demonstrations:
    """Read the observations under the keys ``observation``, one after the other, and the actions under ``action``.

    Where episodes are stored one by one, those that cannot be used are left out with a warning. Arrays of several
    dimensions are flattened, integers and truth values become numbers.

    Raises:
        UserError: a key is absent or no vector; rows differ in number, are not finite, or too large for float32; no
            episode is usable; the data set's own statistics are not those of its data.
    """
    recording.require("observation", observation)
    recording.require("action", [action])

    def reading(name: str, read: Callable[[Sequence[str]], Rows]) -> Callable[[], tuple[NDArray[np.float32], ...]]:
        def vectors() -> tuple[NDArray[np.float32], ...]:
            rows = read(list(dict.fromkeys([*observation, action])))
            lengths = {key: len(array) for key, array in rows.items()}
            if len(set(lengths.values())) != 1 or not lengths[action]:
                raise UserError(f"{name} has different numbers of rows, or none: {_listed(lengths)}")
            states = [_vectors(recording, name, key, rows) for key in observation]
            return np.concatenate(states, axis=1), _vectors(recording, name, action, rows)

        return vectors

    readers = {name: reading(name, read) for name, read in recording.episodes.items()}
    if recording.one_by_one:
        episodes = list(read_episodes(recording.path, readers).values())
    else:
        episodes = [read() for read in readers.values()]
    demonstrations = Demonstrations(
        state=np.concatenate([state for state, _ in episodes]),
        action=np.concatenate([action for _, action in episodes]),
        episode_ends=np.cumsum([len(action) for _, action in episodes], dtype=np.int64),
    )
    if len(episodes) == len(readers):
        _check_statistics(recording, observation, demonstrations.state)
        _check_statistics(recording, [action], demonstrations.action)
    return demonstrations


def _listed(lengths: dict[str, int]) -> str:
    return ", ".join(f"{key} {length}" for key, length in lengths.items())


def _vectors(recording: Recording, name: str, key: str, rows: Rows) -> NDArray[np.float32]:
    """Rows (T, …) of one key → (T, D)."""
    array, feature = rows[key], recording.features[key]
    if array.dtype.kind not in "biuf" or array.shape[1:] != feature.shape:
        raise UserError(f"{name}: {key} is {array.dtype} {array.shape}, expected {feature.dtype} (T, *{feature.shape})")
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is found below
        vectors = array.reshape(len(array), -1).astype(np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = int((~finite).sum())
        where = f"first at step {finite.argmin()} (steps affected: {bad})"
        raise UserError(f"{name}: {key} holds NaN, infinity or numbers beyond float32, {where}")
    return vectors


def _check_statistics(recording: Recording, keys: Sequence[str], rows: NDArray[np.float32]) -> None:
    """Compare what the data reach with what the data set's own statistics say that they reach."""
    column = 0
    for key in keys:
        columns = slice(column, column := column + recording.features[key].size)
        if key not in recording.limits:
            continue
        low, high = recording.limits[key]
        found = rows[:, columns].min(0), rows[:, columns].max(0)
        if not low.shape == high.shape == found[0].shape:
            raise UserError(
                f"{recording.statistics}: {key} has statistics of {low.size} components, the data {found[0].size}"
            )
        tolerance = 1e-4 * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))
        fits = (np.abs(found[0] - low) <= tolerance) & (np.abs(found[1] - high) <= tolerance)
        if not fits.all():
            i = int(fits.argmin())
            told, reached = f"{low[i]:.6g} to {high[i]:.6g}", f"{found[0][i]:.6g} to {found[1][i]:.6g}"
            raise UserError(
                f"{recording.statistics}: says component {i} of {key} reaches {told}, but the data reach {reached};"
                " it is of other data, or data are missing: fetch the data set anew, or remove that file"
            )


def require_windows(path: Path, demonstrations: Demonstrations, horizon: int) -> None:
    """Refuse episodes shorter than the actions that a policy predicts.

    Args:
        path: the data set, for the message.
        horizon: ``data.horizon`` of params.yaml.

    Raises:
        UserError: naming how many there are, and the shortest.
    """
    lengths = np.diff(demonstrations.episode_ends, prepend=0)
    short = int((lengths < horizon).sum())
    if short:
        shortest = f"the shortest, number {lengths.argmin()}, has {lengths.min()} steps"
        raise UserError(
            f"{path}: {short} of {len(lengths)} episodes are shorter than data.horizon = {horizon}; {shortest}"
        )
