"""Push-T demonstrations in state form: reading them from every format they come in."""

import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import ZipStore

from pipeline.tasks.demonstrations import ACTION, EPISODE_ENDS, STATE, Demonstrations
from pipeline.utils.errors import UserError

ARRAYS = (STATE, ACTION, EPISODE_ENDS)
WIDTH = {STATE: 5, ACTION: 2}

Arrays = Mapping[str, NDArray[np.generic]]


def read_pusht(path: Path) -> Demonstrations:
    """Read and validate Push-T demonstrations.

    Their states (N, 5) are agent x, y and block x, y in pixels of the 512 × 512 arena, and the block's angle in
    radians; their actions (N, 2) the agent's target x, y in the same pixels.

    The format is told by what the file holds, not by its name: a zarr folder or zipped zarr store in the layout of
    Diffusion Policy's replay buffer (``data/state``, ``data/action``, ``meta/episode_ends``; Chi et al., RSS 2023), or
    an ``.npz`` file with ``state``, ``action`` and ``episode_ends``.

    Raises:
        UserError: the file is absent, unreadable or of another format; an array is missing, has another type or
            shape, lacks chunks or shards, or holds NaN or infinity; episode ends do not increase strictly from above 0
            to N.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist; expected Push-T demonstrations (zarr folder, zarr zip or npz)")
    if path.is_dir():
        arrays = _read_zarr(path, path)
    elif _is_npz(path):
        arrays = _read_npz(path)
    else:
        with ZipStore(path, mode="r") as store:
            arrays = _read_zarr(path, store)
    return _validated(path, arrays)


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is neither a zarr folder nor a whole zip or npz file ({error})") from error
    return any(name.endswith(".npy") for name in names)


def _read_zarr(path: Path, store: Path | ZipStore) -> Arrays:
    try:
        group = zarr.open_group(store, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a zarr store: no group is at its root") from error
    return {name: _read_zarr_array(path, group, name) for name in ARRAYS if name in group}


def _read_zarr_array(path: Path, group: zarr.Group, name: str) -> NDArray[np.generic]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise UserError(f"{path}: {name} is a zarr group, expected an array")
    if not array.ndim:
        raise UserError(f"{path}: array {name} is a single number")
    require_whole(path, name, array)
    if not array.size:
        return np.empty(array.shape, dtype=array.dtype)
    n_rows, step = array.shape[0], (array.shards or array.chunks)[0]
    try:
        # One stored file a call: when one of many fails, zarr abandons the rest and asyncio complains of each at exit.
        return np.concatenate([np.asarray(array[start : start + step]) for start in range(0, n_rows, step)])
    except Exception as error:  # every codec fails in its own way on damaged bytes
        raise _damaged(path, name, error) from error


def require_whole(path: Path, name: str, array: zarr.Array) -> None:
    """Refuse an array of which chunks, or in zarr 3 shards of many chunks, are absent.

    zarr reads what is absent as zeros; no chunk of Push-T is all zeros, so absent means lost.

    Raises:
        UserError: some are absent.
    """
    stored = array.shards or array.chunks
    expected = math.prod(-(-length // step) for length, step in zip(array.shape, stored, strict=True))
    # zarr counts the chunks that all present shards have room for, more than the array has where the last is not full
    present = array.nchunks_initialized // math.prod(a // b for a, b in zip(stored, array.chunks, strict=True))
    if present < expected:
        kind = "chunks" if array.shards is None else "shards"
        raise UserError(f"{path}: array {name} lacks {expected - present} of its {expected} {kind}; fetch it anew")


def _read_npz(path: Path) -> Arrays:
    keys = {name.rpartition("/")[2]: name for name in ARRAYS}
    arrays: dict[str, NDArray[np.generic]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in keys.keys() & set(file.files):
            try:
                arrays[keys[key]] = file[key]
            except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
                raise _damaged(path, keys[key], error) from error
    return arrays


def _damaged(path: Path, name: str, error: Exception) -> UserError:
    return UserError(f"{path}: array {name} cannot be read: {' '.join(str(error).split()) or type(error).__name__}")


def _validated(path: Path, arrays: Arrays) -> Demonstrations:
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise UserError(f"{path}: array {_list(missing)} is missing; Push-T demonstrations hold {_list(ARRAYS)}")
    for name, width in WIDTH.items():
        _check_rows(path, name, arrays[name], width)
    n_steps = len(arrays[STATE])
    if len(arrays[ACTION]) != n_steps:
        raise UserError(f"{path}: array {ACTION} has {len(arrays[ACTION])} rows, expected {n_steps} as {STATE}")
    _check_ends(path, arrays[EPISODE_ENDS], n_steps)
    return Demonstrations(
        state=arrays[STATE].astype(np.float32),
        action=arrays[ACTION].astype(np.float32),
        episode_ends=arrays[EPISODE_ENDS].astype(np.int64),
    )


def _check_rows(path: Path, name: str, array: NDArray[np.generic], width: int) -> None:
    if array.dtype.kind != "f":
        raise UserError(f"{path}: array {name} has dtype {array.dtype}, expected floating point")
    if array.ndim != 2 or array.shape[1] != width or not len(array):
        raise UserError(f"{path}: array {name} has shape {array.shape}, expected (N, {width}) with N ≥ 1")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        n_bad = int((~finite).sum())
        raise UserError(
            f"{path}: array {name} holds NaN or infinity, first in row {finite.argmin()} (rows affected: {n_bad})"
        )


def _check_ends(path: Path, ends: NDArray[np.generic], n_steps: int) -> None:
    if ends.dtype.kind not in "iu" or ends.ndim != 1 or not len(ends):
        raise UserError(f"{path}: array {EPISODE_ENDS} is {ends.dtype} {ends.shape}, expected integers (E,) with E ≥ 1")
    lengths = np.diff(ends.astype(np.int64), prepend=0)
    if (lengths <= 0).any():
        raise UserError(
            f"{path}: array {EPISODE_ENDS} does not increase strictly from above 0 (at index {(lengths <= 0).argmax()})"
        )
    if int(ends[-1]) != n_steps:
        raise UserError(f"{path}: array {EPISODE_ENDS} ends at {ends[-1]}, expected {n_steps}, the number of steps")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
