"""Mend dvc.lock when DVC ends while it writes it.

DVC rewrites the file in place, for a moment after each stage: killed meanwhile, or out of disk space, it leaves the
beginning, and refuses to read that. A stage that DVC runs keeps a copy and starts a guard, ``watch`` in a process,
which waits until DVC has ended, puts back what is missing, reports too (see ``restore``), and ends. ``make repro`` does
so before it starts, should the guard have been killed as well, or DVC before it had run a stage. Nothing heavy is
imported, so that the guard starts in milliseconds.
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
    """Keep copies of the lock files below ``root``."""
    for lock in lock_files(root):
        text = lock.read_text(encoding="utf-8")
        if text.endswith("\n") and text != _kept(root, lock):  # else another DVC is writing it
            write_text(_copy(root, lock), text)


def guard(root: Path, dvc: int) -> None:
    """Keep copies of the lock files below ``root`` and see to it that they are whole when process ``dvc`` has ended."""
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
    """Put back what is missing in the lock files below ``root`` that were cut short; return these.

    Args:
        ended: the process of a DVC that was running until now, so that nobody else has removed what is missing.
    """
    found = []
    for lock in lock_files(root):
        text = lock.read_text(encoding="utf-8", errors="replace")
        new, old = entries(text), entries(_kept(root, lock))
        if old and (not text.endswith("\n") or (ended and _lacks(new, old))):
            found.append(lock)
            with suppress(KeyError):
                new.popitem()  # the last one may be half
            try:
                write_text(lock, HEAD + "".join((old | new).values()))
            except OSError:  # a full disk has room for another name
                _copy(root, lock).replace(lock)
    _mend_readers(root / ".dvc" / "tmp", ended)
    return found


def _mend_readers(folder: Path, ended: int | None) -> None:
    """Mend DVC's list of who reads and writes what, which it writes in place too: remove half a list, and processes
    that have ended, which count as at work there until their parents have asked for their exit codes.

    Nobody writes it meanwhile: a DVC that is at work would find its own entry gone, and fail.
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
    """Whether entries of ``old``, or lines of the last one, are missing in ``new``."""
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
    """Mend once process ``dvc`` has ended; one guard for each is enough."""
    with (root / KEPT / f"{dvc}.guard").open("w", encoding="utf-8") as file:
        platform.lock(file)
        platform.wait_for_end(dvc)
        # The next DVC waits for this lock.
        with (root / ".dvc" / "tmp" / "lock").open("a", encoding="utf-8") as whole:
            platform.lock(whole, wait=True)
            mend(root, dvc)
            put_back(root)
        Path(file.name).unlink()
