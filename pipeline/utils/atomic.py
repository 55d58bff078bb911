"""Write files atomically: into a temporary file beside the target, flushed to disk, then renamed over it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is fsynced and renamed over ``path``, on failure removed.

    The temporary name keeps the suffix of ``path``, since some writers choose the format by it.

    Raises:
        UserError: ``path`` is a folder, or a file stands in the place of its folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, but a file is to be written there; remove or rename it")
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o644)  # mkstemp makes 0600, which a shared machine's other users could not read
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of ``path`` that a killed process left. No other process may be writing ``path``."""
    for left in path.parent.glob(f".{escape(path.stem)}.{'?' * 8}{escape(path.suffix)}"):
        left.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Create ``path`` and its parents.

    Raises:
        UserError: a file stands where a folder is needed.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        culprit = next(p for p in (path, *path.parents) if p.exists() and not p.is_dir())
        raise UserError(f"{culprit}: is a file, but a folder is needed there; remove or rename it") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write ``table`` to ``path`` atomically as CSV: a missing value is an empty field."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
