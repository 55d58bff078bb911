"""Keep only the entries of the current scale in ``dvc.lock``, and those of the other scales beside their reports.

DVC reads and writes the whole file after each stage. With all scales in it, that takes seconds.
"""

import re
from pathlib import Path

from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError

HEAD = "schema: '2.0'\nstages:\n"
_ENTRY = re.compile(r"^  \S.*\n(?:(?:    .*)?\n)*", re.MULTILINE)
_SCALE = re.compile(r"  [^@]+@(\w+?)(?:-.*)?:")


def lock_files(root: Path) -> list[Path]:
    """List the existing lock files of the pipelines below ``root``."""
    return [path for path in (root / "dvc.lock", *sorted(root.glob("reports/*/study/dvc.lock"))) if path.exists()]


def entries(text: str) -> dict[str, str]:
    """Split a lock file into its stages: first line, which holds the stage's name → whole entry."""
    return {entry.partition("\n")[0]: entry for entry in _ENTRY.findall(text)}


def kept_lock(root: Path, scale: str) -> Path:
    """Return the file for the entries of ``scale`` while another scale is current."""
    return root / "reports" / scale / "dvc.lock"


def arrange_locks(root: Path, scale: str) -> None:
    """Move the entries of ``scale`` into ``dvc.lock``, and those of other scales out of it.

    It may be interrupted and run again: an entry is removed from one file only after it is in the other.
    """
    lock = root / "dvc.lock"
    kept = [path for path in root.glob("reports/*/dvc.lock") if path.parent.name != scale]
    of_scales: dict[str, dict[str, str]] = {}
    for path in (*kept, kept_lock(root, scale), lock):
        for name, entry in entries(path.read_text(encoding="utf-8") if path.exists() else "").items():
            named = _SCALE.fullmatch(name)
            of_scales.setdefault(named[1] if named else scale, {})[name] = entry
    for other, stages in of_scales.items():
        if other != scale:
            _write(kept_lock(root, other), stages)
    if scale in of_scales:
        _write(lock, of_scales[scale])
    kept_lock(root, scale).unlink(missing_ok=True)


def require_lock_of(root: Path, scale: str) -> None:
    """Refuse to run ``scale`` while its entries are not in ``dvc.lock``: all its stages would seem out of date.

    Raises:
        UserError: naming the command that moves them there.
    """
    if (away := kept_lock(root, scale)).exists():
        raise UserError(
            f"params.yaml: scale: given {scale!r}, but dvc.lock holds another scale and {away.relative_to(root)} this "
            f"one; `python -m pipeline.settings.scale {scale}` changes both, as `make repro SCALE={scale}` does"
        )


def _write(path: Path, stages: dict[str, str]) -> None:
    text = HEAD + "".join(stages.values())
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
