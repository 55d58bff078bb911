"""Repair dvc.lock if DVC ends while writing it.

DVC rewrites the file in place after each stage. If it is killed meanwhile, or the disk is full, it leaves a truncated
file, which it then refuses to read. Each stage that DVC runs keeps a copy and starts a guard process (``watch``), which
waits for DVC's end and restores missing entries and reports (see ``restore``). ``make repro`` repairs before it starts,
since the guard may have been killed too. Nothing heavy is imported, so that the guard starts in milliseconds.
"""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from pipeline.orchestration.restore import put_back
from pipeline.settings.locks import HEAD, entries, lock_files
from pipeline.utils import platform
from pipeline.utils.atomic import write_text

KEPT = Path(".flowtune", "locks")
_GUARD = """
import contextlib, pathlib, sys
_, code, root, dvc = sys.argv
sys.path.insert(0, code)
from pipeline.orchestration import lockguard
with contextlib.suppress(OSError):  # another is on guard, or the folder is gone
    lockguard.watch(pathlib.Path(root), int(dvc))
"""


def keep(root: Path) -> None:
    """Copy the complete lock files below ``root``."""
    for lock in lock_files(root):
        text = lock.read_text(encoding="utf-8")
        if text.endswith("\n") and text != _kept(root, lock):  # else another DVC is writing it
            write_text(_copy(root, lock), text)


def guard(root: Path, dvc: int) -> None:
    """Copy the lock files below ``root``, and start a guard that repairs them once process ``dvc`` has ended."""
    keep(root)
    subprocess.Popen(
        [sys.executable, "-I", "-c", _GUARD, str(Path(__file__).resolve().parents[2]), str(root), str(dvc)],
        cwd="/",  # the folder may be one that DVC removes
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def mend(root: Path, ended: int | None = None) -> list[Path]:
    """Restore the missing entries of truncated lock files below ``root``; return the repaired files.

    Args:
        ended: the pid of a DVC that has just ended; nobody else can have removed entries, so all are restored.
    """
    found = []
    for lock in lock_files(root):
        text = lock.read_text(encoding="utf-8", errors="replace")
        new, old = entries(text), entries(_kept(root, lock))
        if old and (not text.endswith("\n") or (ended and _lacks(new, old))):
            found.append(lock)
            with suppress(KeyError):
                new.popitem()  # the last entry may be truncated
            try:
                write_text(lock, HEAD + "".join((old | new).values()))
            except OSError:  # renaming works on a full disk
                _copy(root, lock).replace(lock)
    _mend_readers(root / ".dvc" / "tmp", ended)
    return found


def _mend_readers(folder: Path, ended: int | None) -> None:
    """Remove a truncated list, or ended processes, from DVC's list of readers and writers, also written in place.

    DVC considers an ended process running until its parent has read its exit code. The lock keeps other processes from
    writing the list meanwhile: a running DVC fails if its own entry is lost.
    """
    with suppress(OSError), (folder / "rwlock.lock").open("a", encoding="utf-8") as lock:
        platform.lock(lock, wait=True)
        path = folder / "rwlock"
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            everybody = [
                *held.get("write", {}).values(),
                *(who for all_ in held.get("read", {}).values() for who in all_),
            ]
            gone = {who["pid"] for who in everybody if who["pid"] == ended or not platform.is_at_work(who["pid"])}
            writers = {file: who for file, who in held.get("write", {}).items() if who["pid"] not in gone}
            readers = {
                file: [who for who in all_ if who["pid"] not in gone] for file, all_ in held.get("read", {}).items()
            }
        except (ValueError, AttributeError, KeyError, TypeError):
            path.unlink()
            return
        mended = {"write": writers, "read": {file: left for file, left in readers.items() if left}}
        if mended != held:
            write_text(path, json.dumps(mended))


def _lacks(new: dict[str, str], old: dict[str, str]) -> bool:
    """Tell whether ``new`` lacks entries of ``old``, or lines of its own last entry."""
    if not old.keys() <= new.keys():
        return True
    last = next(reversed(new))
    return new[last].count("\n") < old.get(last, "").count("\n")


def _copy(root: Path, lock: Path) -> Path:
    return root / KEPT / lock.relative_to(root).as_posix().replace("/", "-")


def _kept(root: Path, lock: Path) -> str:
    copy = _copy(root, lock)
    return copy.read_text(encoding="utf-8") if copy.exists() else ""


def watch(root: Path, dvc: int) -> None:
    """Repair once process ``dvc`` has ended; raise ``BlockingIOError`` if another guard waits for it already."""
    with (root / KEPT / f"{dvc}.guard").open("w", encoding="utf-8") as file:
        platform.lock(file)
        platform.wait_for_end(dvc)
        # The next DVC waits for this lock.
        with (root / ".dvc" / "tmp" / "lock").open("a", encoding="utf-8") as whole:
            platform.lock(whole, wait=True)
            mend(root, dvc)
            put_back(root)
        Path(file.name).unlink()
