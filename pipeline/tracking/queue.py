"""Append stages' records to a queue; a recorder, a process of its own, forwards them to MLflow.

Each stage has a folder in ``.flowtune/queue``: how its run began, the calls it made, one JSON line each, and copies of
the files it gave. It has its lines locked for as long as it lives. A stage that finds no recorder at work starts one
(``pipeline.tracking.recorder``), whoever started the stage, and never waits for it. Whoever holds the queue's lock is
the recorder. If it is killed, the next one plays what it left from its beginning, which gives the same run: it is the
same ``Start``.
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
"""How long a recorder may take to claim the lock."""

_RECORDER = """
import sys
_, code, root = sys.argv
sys.path.insert(0, code)
from pipeline.tracking.recorder import main
main(root)
"""
# The shell ends at once: the recorder is no child of a stage, whose memory is measured with all that it has started,
# and hears no SIGINT.
_IN_BACKGROUND = ["/bin/sh", "-c", '"$0" "$@" &']


def queue_of(root: Path) -> Path:
    """The folder of the queue of the project in ``root``."""
    return root / ".flowtune" / "queue"


def append(root: Path, start: Start) -> Run:
    """Begin a run in the queue and see to it that a recorder is at work.

    Raises:
        OSError: the queue cannot be written to, or the recorder not be started.
    """
    queue_of(root).mkdir(parents=True, exist_ok=True)
    run = _QueuedRun(root, start)
    start_recorder(root)
    return run


def entries(root: Path) -> list[Path]:
    """The runs in the queue, in the order of their beginning."""
    with suppress(FileNotFoundError):
        return sorted(path for path in queue_of(root).iterdir() if not path.name.startswith("."))
    return []


def start_of_entry(folder: Path) -> Start:
    """How a run of the queue began."""
    return Start(**json.loads((folder / "start.json").read_text(encoding="utf-8")))


def processes_in_queue(root: Path) -> set[str]:
    """The stages, as their start names their process, whose runs are in the queue."""
    found = set()
    for folder in entries(root):
        with suppress(OSError, ValueError, TypeError):  # it has ended meanwhile, or is damaged
            found.add(start_of_entry(folder).tags[PROCESS])
    return found


def is_left(folder: Path) -> bool:
    """Whether the stage that began a run of the queue is gone, be it one of a container or before a reboot."""
    with (folder / "lines").open("rb") as lines:
        try:
            platform.lock(lines, shared=True)
        except BlockingIOError:
            return False
        return True


def claim(root: Path, *, probe: bool = False) -> IO[str] | None:
    """The lock of the recorder, held until it is closed; None if another has it."""
    lock = queue_of(root).with_suffix(".lock").open("w", encoding="utf-8")
    try:
        platform.lock(lock, shared=probe)
    except OSError:
        lock.close()
        return None
    return lock


def start_recorder(root: Path) -> None:
    """Start a recorder where none is at work. It shares neither output nor process group with this process.

    Raises:
        OSError: it cannot be started.
    """
    free = claim(root, probe=True)
    if not free:
        return
    free.close()
    code = Path(__file__).resolve().parents[2]
    with _warnings(root).open("ab") as errors:
        subprocess.run(
            [*_IN_BACKGROUND, sys.executable, "-I", "-X", "utf8", "-c", _RECORDER, str(code), str(root)],
            cwd="/",  # the folder may be one that DVC removes
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            check=False,
        )


def drain(root: Path, seconds: float = DRAIN_SECONDS) -> bool:
    """Wait until all runs in the queue have ended and are recorded, ``seconds`` at most; whether they are."""
    time_now = started = time.monotonic()
    deadline = time_now + seconds
    with suppress(OSError):
        while entries(root) and time_now < deadline:
            if time_now >= started:  # again and again: one that was killed holds the lock until it is gone
                start_recorder(root)
                started = time_now + START_SECONDS
            time.sleep(POLL_SECONDS / 3)
            time_now = time.monotonic()
        show_warnings(root)
    return not entries(root)


def show_warnings(root: Path) -> None:
    """Print what the recorder could not record, which nobody has seen yet."""
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
        name = f"{time.time_ns()}-{os.getpid()}"  # in the order of their beginning
        made = queue_of(root) / f".{name}"
        made.mkdir()
        (made / "start.json").write_text(json.dumps(asdict(start)), encoding="utf-8")
        self._lines = (made / "lines").open("ab", buffering=0)
        platform.lock(self._lines)  # let go of when this process is gone, however it ends
        self._folder = made.rename(queue_of(root) / name)  # there only when it is whole

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
        self._attempt(lambda: start_recorder(self._root))  # the one there was may have been killed
        show_warnings(self._root)

    def _write(self, call: str, *arguments: object) -> None:
        line = json.dumps([call, *arguments], default=str)
        self._attempt(lambda: self._lines.write(f"{line}\n".encode()))

    def _copy(self, path: Path) -> str:
        """Of a file that the stage may change or remove as soon as it goes on."""
        self._files += 1
        folder = self._folder / str(self._files)
        folder.mkdir()
        shutil.copyfile(path, folder / path.name)
        return f"{folder.name}/{path.name}"
