"""Append stages' records to a queue; a separate recorder process forwards them to MLflow.

Each stage has a folder in ``.flowtune/queue`` with its run's start, its calls as JSON lines, and copies of its files.
It holds a lock on the lines while it lives. A stage starts a recorder (``pipeline.tracking.recorder``) if none runs,
and never waits for it. The recorder holds the queue's lock file. If it is killed, the next one replays unfinished runs
from their beginning; the same ``Start`` gives the same MLflow run.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from pipeline.tracking.files import DataSet, Model
from pipeline.tracking.run import PROCESS, Run, Start, Warned, now
from pipeline.utils import platform

POLL_SECONDS = 0.3
DRAIN_SECONDS = 10.0
START_SECONDS = 2.0
"""Time that a recorder may take to claim the lock."""

_RECORDER = """
import sys
_, code, root = sys.argv
sys.path.insert(0, code)
from pipeline.tracking.recorder import main
main(root)
"""
# The shell ends at once, so that the recorder is no child of the stage: the stage's memory includes its children. The
# recorder gets no SIGINT either.
_IN_BACKGROUND = ["/bin/sh", "-c", '"$0" "$@" &']


def queue_of(root: Path) -> Path:
    """Return the queue's folder of the project in ``root``."""
    return root / ".flowtune" / "queue"


def append(root: Path, start: Start) -> Run:
    """Begin a run in the queue, and start a recorder if none runs.

    Raises:
        OSError: the queue cannot be written, or the recorder cannot be started.
    """
    queue_of(root).mkdir(parents=True, exist_ok=True)
    run = _QueuedRun(root, start)
    start_recorder(root)
    return run


def entries(root: Path) -> list[Path]:
    """List the runs in the queue, in the order of their start."""
    with suppress(FileNotFoundError):
        return sorted(path for path in queue_of(root).iterdir() if not path.name.startswith("."))
    return []


def start_of_entry(folder: Path) -> Start:
    """Read the start of a run in the queue."""
    return Start(**json.loads((folder / "start.json").read_text(encoding="utf-8")))


def processes_in_queue(root: Path) -> set[str]:
    """Return the identities of the processes whose runs are in the queue."""
    found = set()
    for folder in entries(root):
        with suppress(OSError, ValueError, TypeError):  # the run has ended meanwhile, or is damaged
            found.add(start_of_entry(folder).tags[PROCESS])
    return found


def is_left(folder: Path) -> bool:
    """Tell whether the stage of a run in the queue has ended, also in a container or before a reboot."""
    with (folder / "lines").open("rb") as lines:
        try:
            platform.lock(lines, shared=True)
        except BlockingIOError:
            return False
        return True


def claim(root: Path, *, probe: bool = False) -> IO[str] | None:
    """Take the recorder's lock, held until it is closed; return None if another process has it."""
    lock = queue_of(root).with_suffix(".lock").open("w", encoding="utf-8")
    try:
        platform.lock(lock, shared=probe)
    except OSError:
        lock.close()
        return None
    return lock


def start_recorder(root: Path) -> None:
    """Start a recorder without this process's output and group if none runs; raise an ``OSError`` on failure."""
    free = claim(root, probe=True)
    if not free:
        return
    free.close()
    code = Path(__file__).resolve().parents[2]
    with _warnings(root).open("ab") as errors:
        subprocess.run(
            [*_IN_BACKGROUND, sys.executable, "-I", "-X", "utf8", "-c", _RECORDER, str(code), str(root)],
            cwd="/",  # DVC may remove the current folder
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            check=False,
        )


def drain(root: Path, seconds: float = DRAIN_SECONDS) -> bool:
    """Wait at most ``seconds`` for the end and the recording of all queued runs; tell whether that is done."""
    time_now = started = time.monotonic()
    deadline = time_now + seconds
    with suppress(OSError):
        while entries(root) and time_now < deadline:
            if time_now >= started:  # retry: a killed recorder holds the lock until its end
                start_recorder(root)
                started = time_now + START_SECONDS
            time.sleep(POLL_SECONDS / 3)
            time_now = time.monotonic()
        show_warnings(root)
    return not entries(root)


def show_warnings(root: Path) -> None:
    """Print the recorder's warnings that have not been shown yet."""
    with suppress(OSError), _warnings(root).open("r+", encoding="utf-8", errors="replace") as file:
        lines = file.readlines()
        file.truncate(0)
        sys.stderr.writelines(line for line in lines if line.startswith("warning: "))


def _warnings(root: Path) -> Path:
    return queue_of(root).with_suffix(".warnings")


class _QueuedRun(Warned):
    def __init__(self, root: Path, start: Start) -> None:
        super().__init__(start.stage)
        self._root, self._files = root, 0
        name = f"{time.time_ns()}-{os.getpid()}"  # sorts by start time
        made = queue_of(root) / f".{name}"
        made.mkdir()
        (made / "start.json").write_text(json.dumps(asdict(start)), encoding="utf-8")
        self._lines = (made / "lines").open("ab", buffering=0)
        platform.lock(self._lines)  # released when this process ends, however it does
        self._folder = made.rename(queue_of(root) / name)  # visible only when complete

    def log(self, metrics: Mapping[str, float], step: int | None = None, when: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._write("log", values, None if step is None else int(step), when or now())

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self._attempt(lambda: self._write("artifact", self._copy(path), folder))

    def tag(self, key: str, value: str) -> None:
        self._write("tag", key, value)

    def table(self, path: Path, name: str) -> None:
        self._attempt(lambda: self._write("table", self._copy(path), name))

    def read(self, data_sets: Iterable[DataSet], models: Sequence[str], *, measured: bool) -> None:
        self._attempt(lambda: self._write("read", [asdict(each) for each in data_sets], models, measured))

    def wrote(self, models: Iterable[Model]) -> None:
        self._attempt(lambda: self._write("wrote", [asdict(model) for model in models]))

    def close(self, status: str, when: int | None = None) -> None:
        self._write("close", status, when or now())
        self._lines.close()
        self._attempt(lambda: start_recorder(self._root))  # the last one may have been killed
        show_warnings(self._root)

    def _write(self, call: str, *arguments: object) -> None:
        line = json.dumps([call, *arguments], default=str)
        self._attempt(lambda: self._lines.write(f"{line}\n".encode()))

    def _copy(self, path: Path) -> str:
        """Copy a file, which the stage may change or remove later; return the copy's path in the run's folder."""
        self._files += 1
        folder = self._folder / str(self._files)
        folder.mkdir()
        shutil.copyfile(path, folder / path.name)
        return f"{folder.name}/{path.name}"
