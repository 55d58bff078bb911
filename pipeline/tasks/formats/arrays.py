"""Open npz files and zarr stores with the concatenated arrays of all episodes and the rows where episodes end.

zarr in the layout of Diffusion Policy's replay buffer (Chi et al., RSS 2023), ``data/<key>`` and ``meta/episode_ends``:
versions 2 and 3, sharded or not, a folder or a zip. npz with ``<key>`` and ``episode_ends``.
"""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import ZipStore

from pipeline.tasks.formats.recording import Array, Feature, Recording, Rows, one_line
from pipeline.utils.errors import UserError

ENDS = "episode_ends"


def open_arrays(path: Path) -> Recording:
    """Open an npz file or a zarr store, recognised by its contents.

    Raises:
        UserError: as ``open_npz`` and ``open_zarr``; or the file is absent.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist; expected a zarr folder, zarr zip or npz file")
    return open_zarr(path) if path.is_dir() or not is_npz(path) else open_npz(path)


def open_npz(path: Path) -> Recording:
    """Open an npz file.

    Raises:
        UserError: an array cannot be read; ``episode_ends`` is absent or does not increase strictly from above 0.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        headers = {name: _header(path, archive, name) for name in names}
    return _recording(path, "npz", "npz", headers, partial(read_npz_array, path), ENDS)


def open_zarr(path: Path) -> Recording:
    """Open a zarr store, a folder or a zip.

    Raises:
        UserError: it is no zarr store; ``meta/episode_ends`` is absent or does not increase strictly from above 0.
    """
    with ZarrStore(path) as group:
        data = group.get("data")
        if not isinstance(data, zarr.Group):
            raise UserError(f"{path}: has no zarr group data; expected data/<key> and meta/{ENDS}")
        headers = {key: (array.shape, np.dtype(array.dtype)) for key, array in data.arrays()}
        version = group.metadata.zarr_format
    return _recording(
        path, "zarr", f"zarr v{version} replay buffer", headers, partial(_read_from_store, path), f"meta/{ENDS}"
    )


def _recording(
    path: Path,
    name: str,
    title: str,
    headers: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    read: Callable[[str], Array],
    ends_name: str,
) -> Recording:
    ends = read(ends_name)
    check_ends(path, ends_name, ends)
    bounds = np.concatenate([[0], ends]).astype(np.int64)
    loaded = cache(read)

    def rows(start: int, end: int, keys: Sequence[str]) -> Rows:
        return {key: _whole(path, key, loaded(arrays[key]), int(bounds[-1]))[start:end] for key in keys}

    arrays = {key: f"data/{key}" if name == "zarr" else key for key in headers}
    spans = enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    return Recording(
        path,
        name,
        title,
        {key: Feature(shape[1:], str(dtype)) for key, (shape, dtype) in headers.items() if shape and key != ENDS},
        {f"{path}: episode {index}": partial(rows, start, end) for index, (start, end) in spans},
    )


def _whole(path: Path, key: str, array: Array, n_steps: int) -> Array:
    if len(array) != n_steps:
        raise UserError(f"{path}: array {key} has {len(array)} rows, expected {n_steps}, where {ENDS} ends")
    return array


def _header(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        with archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(path, name, error) from error
    return shape, dtype


def is_npz(path: Path) -> bool:
    """Tell whether the zip file ``path`` holds numpy's arrays.

    Raises:
        UserError: it is no whole zip file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is neither a zarr folder nor a whole zip or npz file ({error})") from error
    return any(name.endswith(".npy") for name in names)


def read_npz_array(path: Path, name: str) -> NDArray[np.generic]:
    """Read the array ``name`` of an npz file.

    Raises:
        UserError: it is absent, damaged, or holds Python objects.
    """
    with np.load(path, allow_pickle=False) as file:
        if name not in file.files:
            raise UserError(f"{path}: array {name} is missing; there are {', '.join(file.files)}")
        try:
            array: NDArray[np.generic] = file[name]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise damaged(path, name, error) from error
    return array


class ZarrStore:
    """Open the root group of a zarr folder or zip for the time of a ``with`` block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = None if path.is_dir() else ZipStore(path, mode="r")

    def __enter__(self) -> zarr.Group:
        try:
            return zarr.open_group(self._path if self._zip is None else self._zip, mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{self._path}: is not a zarr store: no group is at its root") from error

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()


def _read_from_store(path: Path, name: str) -> NDArray[np.generic]:
    with ZarrStore(path) as group:
        if name not in group:
            raise UserError(f"{path}: array {name} is missing")
        return read_zarr_array(path, group, name)


def read_zarr_array(path: Path, group: zarr.Group, name: str) -> NDArray[np.generic]:
    """Read the whole array ``name`` of a store.

    Raises:
        UserError: it is a group or a single number, lacks chunks or shards, or is damaged.
    """
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
        # One stored file per call: if one of many fails, zarr abandons the rest and asyncio warns about each at exit.
        return np.concatenate([np.asarray(array[start : start + step]) for start in range(0, n_rows, step)])
    except Exception as error:  # each codec raises its own exceptions on damaged bytes
        raise damaged(path, name, error) from error


def require_whole(path: Path, name: str, array: zarr.Array) -> None:
    """Refuse an array with missing chunks, or missing shards (zarr 3, each of many chunks).

    zarr reads a missing chunk as zeros. It may be lost, or all zero and therefore never written (zarr's default). The
    file does not tell which.

    Raises:
        UserError: chunks or shards are missing.
    """
    stored = array.shards or array.chunks
    expected = math.prod(-(-length // step) for length, step in zip(array.shape, stored, strict=True))
    # zarr counts all chunks that fit into the present shards: more than the array has if the last shard is not full
    present = array.nchunks_initialized // math.prod(a // b for a, b in zip(stored, array.chunks, strict=True))
    if present < expected:
        kind = "chunks" if array.shards is None else "shards"
        also = ", or write zeros too (write_empty_chunks)"
        raise UserError(
            f"{path}: array {name} lacks {expected - present} of its {expected} {kind}; fetch it anew{also}"
        )


def damaged(path: Path, name: str, error: Exception) -> UserError:
    """Make the error for an array that a library cannot read."""
    return UserError(f"{path}: array {name} cannot be read: {one_line(error)}")


def check_ends(path: Path, name: str, ends: NDArray[np.generic]) -> None:
    """Refuse ends of episodes other than integers (E,) that increase strictly from above 0.

    Raises:
        UserError: they are something else.
    """
    if ends.dtype.kind not in "iu" or ends.ndim != 1 or not len(ends):
        raise UserError(f"{path}: array {name} is {ends.dtype} {ends.shape}, expected integers (E,) with E ≥ 1")
    lengths = np.diff(ends.astype(np.int64), prepend=0)
    if (lengths <= 0).any():
        raise UserError(
            f"{path}: array {name} does not increase strictly from above 0 (at index {(lengths <= 0).argmax()})"
        )
