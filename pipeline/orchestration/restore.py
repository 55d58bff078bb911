"""Restore the reports that DVC removed for a stage that then made none.

DVC removes a stage's outputs before it runs the stage. Committed tables must survive a stage that fails or is killed.
A stage therefore notes its reports when it begins; missing ones are restored from DVC's cache, else from the commit.
If the stage is killed, the process of ``lockguard`` restores them. As there, nothing heavy is imported.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.settings.locks import entries, lock_files
from pipeline.utils.atomic import write_bytes

NOTES = Path(".flowtune", "begun")
_OUT = re.compile(r"^    - path: (\S+)\n      hash: md5\n      md5: (\w{2})(\w{30})\n", re.MULTILINE)


@contextmanager
def kept_reports(root: Path, label: str, outs: Iterable[Path]) -> Iterator[None]:
    """Restore missing ``outs`` below ``reports`` if the body, the stage ``label``, fails."""
    reports = [path.as_posix() for path in outs if path.parts[:1] == ("reports",)]
    note = _note(root, label, reports)
    if stage := os.environ.get("DVC_STAGE"):  # this note replaces that of note_stage
        _place(root, stage).unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        put_back(root, [note])
        raise
    note.unlink(missing_ok=True)


def note_stage(root: Path, stage: str) -> None:
    """Note the reports of ``stage`` (its DVC name) in dvc.lock, before its program can note them."""
    for lock in lock_files(root):
        if entry := entries(lock.read_text(encoding="utf-8")).get(f"  {stage.rpartition(':')[2]}:"):
            outs = entry.partition("\n    outs:\n")[2]
            _note(root, stage, re.findall(r"^    - path: (reports/\S+)$", outs, re.MULTILINE))


def forget_note(root: Path, stage: str) -> None:
    """Remove the note of ``note_stage``, once the stage is up to date."""
    _place(root, stage).unlink(missing_ok=True)


def _note(root: Path, label: str, reports: list[str]) -> Path:
    note = _place(root, label)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(reports), encoding="utf-8")
    return note


def _place(root: Path, label: str) -> Path:
    return root / NOTES / f"{label.replace('/', '-')}.json"


def put_back(root: Path, notes: Iterable[Path] | None = None) -> list[Path]:
    """Restore missing reports in ``notes`` (None: all notes); return the restored files."""
    made: dict[str, Path] = {}
    for lock in lock_files(root):
        made |= {path: Path(*digits) for path, *digits in _OUT.findall(lock.read_text(encoding="utf-8"))}
    found = []
    for note in list((root / NOTES).glob("*.json")) if notes is None else notes:
        try:
            names = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # truncated by a full disk, or handled by another process
            names = []
        for name in names:
            if not (root / name).exists() and (text := _kept(root, name, made.get(name))) is not None:
                write_bytes(root / name, text)
                found.append(root / name)
        note.unlink(missing_ok=True)
    return found


def _kept(root: Path, name: str, cached: Path | None) -> bytes | None:
    if cached and (file := root / ".dvc" / "cache" / "files" / "md5" / cached).exists():
        return file.read_bytes()
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    command = ["git", "-c", f"safe.directory={root}", "show", f"HEAD:{name}"]
    shown = subprocess.run(command, cwd=root, capture_output=True, check=False)
    return shown.stdout if shown.returncode == 0 else None
