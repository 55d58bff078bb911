"""Keep in ``dvc.lock`` the entries of the current scale alone, and those of the others beside their reports.

DVC reads and writes the whole file after each stage, which takes it seconds where all scales are in it.
"""

import re
from pathlib import Path

from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError

_HEAD = "schema: '2.0'\nstages:\n"
_ENTRY = re.compile(r"^  (\S+?)(?:@(\w+?)(?:-.*)?)?:\n(?:(?:    .*)?\n)*", re.MULTILINE)


def kept_lock(root: Path, scale: str) -> Path:
    """Where the entries of ``scale`` lie while another scale is the current one."""
    return root / "reports" / scale / "dvc.lock"


def arrange_locks(root: Path, scale: str) -> None:
    """Bring the entries of ``scale`` into ``dvc.lock``, and those of other scales out of it.

    It can be interrupted and done again: an entry leaves a file when it is in the other.
    """
    lock = root / "dvc.lock"
    kept = [path for path in root.glob("reports/*/dvc.lock") if path.parent.name != scale]
    entries: dict[str, dict[str, str]] = {}
    for path in (*kept, kept_lock(root, scale), lock):
        for found in _ENTRY.finditer(path.read_text(encoding="utf-8") if path.exists() else ""):
            entries.setdefault(found[2] or scale, {})[found[0].partition("\n")[0]] = found[0]
    for other, stages in entries.items():
        if other != scale:
            _write(kept_lock(root, other), stages)
    if scale in entries:
        _write(lock, entries[scale])
    kept_lock(root, scale).unlink(missing_ok=True)


def require_lock_of(root: Path, scale: str) -> None:
    """Refuse to run ``scale`` while its lock is put away: all of it would seem out of date.

    Raises:
        UserError: naming the command that brings it.
    """
    if (away := kept_lock(root, scale)).exists():
        raise UserError(
            f"params.yaml: scale: given {scale!r}, but dvc.lock holds another scale and {away.relative_to(root)} this "
            f"one; `python -m pipeline.settings.scale {scale}` changes both, as `make repro SCALE={scale}` does"
        )


def _write(path: Path, stages: dict[str, str]) -> None:
    text = _HEAD + "".join(stages.values())
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
