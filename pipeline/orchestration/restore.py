"""Put back the reports that DVC removed for a stage that then made none.

DVC removes a stage's outputs before it runs the stage. Committed tables must outlive a stage that fails or is killed: a
stage notes its reports when it begins, and what is noted and not there is put back from DVC's cache, else from the
commit. Only the standard library is imported, as in ``lockguard``, whose process does it where the stage cannot.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

NOTES = Path(".flowtune", "begun")
_OUT = re.compile(r"^    - path: (\S+)\n      hash: md5\n      md5: (\w{2})(\w{30})\n", re.MULTILINE)


@contextmanager
def kept_reports(root: Path, label: str, outs: Iterable[Path]) -> Iterator[None]:
    """While the body, the stage ``label``, makes ``outs``, have those below ``reports`` put back unless it succeeds."""
    reports = [path.as_posix() for path in outs if path.parts[:1] == ("reports",)]
    note = _note(root, label, reports)
    if stage := os.environ.get("DVC_STAGE"):  # this note takes the place of what note_stage wrote
        _place(root, stage).unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        put_back(root, [note])
        raise
    note.unlink(missing_ok=True)


def note_stage(root: Path, stage: str) -> None:
    """Note the reports that dvc.lock has of ``stage``, a name of DVC, whose program has yet to say what it makes."""
    head = f"  {stage.rpartition(':')[2]}:"
    for lock in _locks(root):
        for entry in re.split(r"\n(?=  \S)", lock.read_text(encoding="utf-8")):
            if entry.startswith(f"{head}\n"):
                outs = entry.partition("\n    outs:\n")[2]
                _note(root, stage, re.findall(r"^    - path: (reports/\S+)$", outs, re.MULTILINE))


def _note(root: Path, label: str, reports: list[str]) -> Path:
    note = _place(root, label)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(reports), encoding="utf-8")
    return note


def _place(root: Path, label: str) -> Path:
    return root / NOTES / f"{label.replace('/', '-')}.json"


def _locks(root: Path) -> list[Path]:
    return [path for path in (root / "dvc.lock", *root.glob("reports/*/study/dvc.lock")) if path.exists()]


def put_back(root: Path, notes: Iterable[Path] | None = None) -> list[Path]:
    """Put back what the stages of ``notes`` (None: of all) noted and did not make; the files put back."""
    made: dict[str, Path] = {}
    for lock in _locks(root):
        made |= {path: Path(*digits) for path, *digits in _OUT.findall(lock.read_text(encoding="utf-8"))}
    found = []
    for note in list((root / NOTES).glob("*.json")) if notes is None else notes:
        try:
            names = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # cut short when the disk was full, or another has been here
            names = []
        for name in names:
            if not (root / name).exists() and (text := _kept(root, name, made.get(name))) is not None:
                _write(root / name, text)
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


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(name).chmod(0o644)
    Path(name).replace(path)
