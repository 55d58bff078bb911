"""Forward the records in the queue to MLflow, as a process that stages start and that leaves when it is idle.

It makes the calls that each stage wrote down of the run that MLflow keeps, while the stage runs. A run whose process is
gone without a word ends as KILLED. What cannot be recorded is a line in ``.flowtune/queue.warnings``, which the next
stage that ends shows. Where a server does not answer, runs stay in the queue: the recorder says so once and leaves, and
the next one, which a stage or ``make repro`` starts, plays them from their beginning.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.tracking.files import DataSet, Model
from pipeline.tracking.mlflow_run import begin
from pipeline.tracking.queue import POLL_SECONDS, claim, entries, is_left, start_of_entry
from pipeline.tracking.run import PROCESS, Run, Start, UnreachableError, warn
from pipeline.utils import processes

IDLE_SECONDS = 10.0
"""How long a recorder waits for another run: longer than a stage takes to import what it needs."""

Begin = Callable[[Start], Run]
"""Open the run that keeps a stage's record; opened again with an equal ``Start``, it is the same run."""


def record(root: Path) -> None:
    """Record what comes to the queue of ``root`` until nothing has for ``IDLE_SECONDS``; not if another does."""
    player = Player(root, partial(begin, root))
    # Asked again without the lock: a stage that began meanwhile has found it taken and started none.
    while lock := claim(root):
        with lock:
            busy = time.monotonic()
            while time.monotonic() < busy + IDLE_SECONDS:
                try:
                    if player.play():
                        busy = time.monotonic()
                except UnreachableError as error:
                    _say_once(root, error)
                    return
                time.sleep(POLL_SECONDS)
        if not entries(root):
            _waiting(root).unlink(missing_ok=True)
            return


def _say_once(root: Path, error: UnreachableError) -> None:
    """Warn that runs wait, once until they have been recorded."""
    if not _waiting(root).exists():
        _waiting(root).touch()
        print(f"warning: {error}; runs wait in {root / '.flowtune'} and are recorded when it does", file=sys.stderr)


def _waiting(root: Path) -> Path:
    return root / ".flowtune" / "queue.waiting"


class Player:
    """Makes the calls that stages wrote to the queue."""

    def __init__(self, root: Path, begin: Begin) -> None:
        self._root, self._begin = root, begin
        self._playing: dict[Path, _Playback] = {}

    def play(self) -> bool:
        """Make the calls that have come; whether there were any runs.

        Raises:
            UnreachableError: a server was named, and does not answer; what it did not get is in the queue.
        """
        # Listed before any is read: of stages one after another, the end of the first is seen before the next begins.
        listed = entries(self._root)
        for folder in listed:
            try:
                if folder not in self._playing:
                    self._playing[folder] = _Playback(folder, self._begin)
                ended = self._playing[folder].play()
            except UnreachableError:
                raise
            except Exception as error:  # a line cut off by a full disk: this run's end, and no other's
                warn("a stage", error)
                ended = True
            if ended:
                self._playing.pop(folder, None)
                shutil.rmtree(folder, ignore_errors=True)
        return bool(listed)


class _Playback:
    """One run of the queue."""

    def __init__(self, folder: Path, begin: Begin) -> None:
        start = start_of_entry(folder)
        self._folder, self._process = folder, start.tags[PROCESS]
        self._at = 0
        self._run = begin(start)

    def play(self) -> bool:
        """Make the calls that have come; whether the run has ended."""
        # asked first: what it wrote before is then read
        gone = is_left(self._folder) or processes.is_gone(
            self._process
        )  # the latter where a child of it holds the lock
        with (self._folder / "lines").open("rb") as file:
            file.seek(self._at)
            for line in file:
                if line.endswith(b"\n"):
                    self._at += len(line)
                    if self._call(*json.loads(line)):
                        return True
        if gone:
            self._run.close("KILLED")
        return gone

    def _call(self, name: str, *arguments: Any) -> bool:
        if name in ("artifact", "table"):
            copy, *rest = arguments
            arguments = (self._folder / str(copy), *rest)
        if name == "read":
            data_sets, models, measured = arguments
            self._run.read([DataSet(**each) for each in data_sets], models, measured=measured)
        elif name == "wrote":
            self._run.wrote([Model(**each) for each in arguments[0]])
        else:
            getattr(self._run, name)(*arguments)
        return name == "close"


def main(root: str) -> None:
    """The recorder's process. A folder that is gone ends it."""
    try:
        record(Path(root))
    except OSError as error:
        warn("these stages", error)
