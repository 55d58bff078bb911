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
    note = root / NOTES / f"{label}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(reports), encoding="utf-8")
    try:
        yield
    except BaseException:
        put_back(root, [note])
        raise
    note.unlink(missing_ok=True)


def put_back(root: Path, notes: Iterable[Path] | None = None) -> list[Path]:
    """Put back what the stages of ``notes`` (None: of all) noted and did not make; the files put back."""
    made: dict[str, Path] = {}
    for lock in (root / "dvc.lock", *root.glob("reports/*/study/dvc.lock")):
        if lock.exists():
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
