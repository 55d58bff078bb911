"""Forward queued records to MLflow in a process that stages start and that exits when idle.

It replays each stage's calls on the MLflow run while the stage runs. A run whose process is gone without closing it
ends as KILLED. A failure becomes a line in ``.flowtune/queue.warnings``, which the next ending stage shows. If a server
does not answer, runs stay in the queue; the recorder warns once and exits. The next recorder, started by a stage or
``make repro``, replays them from their beginning.
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
"""Idle time before a recorder exits; longer than a stage's imports take."""

Begin = Callable[[Start], Run]
"""Opens the run that keeps a stage's records; an equal ``Start`` opens the same run again."""


def record(root: Path) -> None:
    """Record the queue of ``root`` until it is idle for ``IDLE_SECONDS``; do nothing if another recorder runs."""
    player = Player(root, partial(begin, root))
    # Checked again after releasing the lock: a stage that found it taken has started no recorder.
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
    """Warn that runs wait for the server, only once until they are recorded."""
    if not _waiting(root).exists():
        _waiting(root).touch()
        print(f"warning: {error}; runs wait in {root / '.flowtune'} until it does", file=sys.stderr)


def _waiting(root: Path) -> Path:
    return root / ".flowtune" / "queue.waiting"


class Player:
    """Replays the calls that stages wrote to the queue."""

    def __init__(self, root: Path, begin: Begin) -> None:
        self._root, self._begin = root, begin
        self._playing: dict[Path, _Playback] = {}

    def play(self) -> bool:
        """Replay new calls; return whether the queue has any runs.

        Raises:
            UnreachableError: a tracking server does not answer; its runs stay in the queue.
        """
        # Listed before reading: of consecutive stages, the end of the first is seen before the start of the next.
        listed = entries(self._root)
        for folder in listed:
            try:
                if folder not in self._playing:
                    self._playing[folder] = _Playback(folder, self._begin)
                ended = self._playing[folder].play()
            except UnreachableError:
                raise
            except Exception as error:  # such as a line truncated by a full disk; it ends only this run
                warn("a stage", error)
                ended = True
            if ended:
                self._playing.pop(folder, None)
                shutil.rmtree(folder, ignore_errors=True)
        return bool(listed)


class _Playback:
    """Replay of one run in the queue."""

    def __init__(self, folder: Path, begin: Begin) -> None:
        start = start_of_entry(folder)
        self._folder, self._process = folder, start.tags[PROCESS]
        self._at = 0
        self._run = begin(start)

    def play(self) -> bool:
        """Replay new calls; return whether the run has ended."""
        # Checked before reading, so that all calls of an ended stage are read. A child of the stage may hold its lock.
        gone = is_left(self._folder) or processes.is_gone(self._process)
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
    """Run the recorder; an ``OSError``, as for a removed folder, ends it with a warning."""
    try:
        record(Path(root))
    except OSError as error:
        warn("these stages", error)
