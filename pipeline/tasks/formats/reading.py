"""Open a data set of any supported format, recognised by its contents."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from pipeline.tasks.formats.arrays import is_npz, open_npz, open_zarr
from pipeline.tasks.formats.lerobot import INFO, open_lerobot
from pipeline.tasks.formats.minari_folder import METADATA, open_minari
from pipeline.tasks.formats.recording import Recording
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
    """Open a data set in any of ``FORMATS``, recognised by its contents, not by its name.

    If a folder holds only one file or folder, as after unpacking an archive, that one is opened.

    Raises:
        UserError: the data set is absent, damaged, of unknown format, or of another format than ``format``.
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
