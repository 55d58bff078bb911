"""Stages write down what they record, another process keeps it: what that costs is off the stages' path.

A stage has a folder of its own in the spool: how its run began, the calls it made, one JSON line each, and copies of
the files it gave. The recorder, a thread of the process that started the stages, makes the same calls of the run that
keeps them, while the stage runs. Whoever holds the spool's lock is the recorder. Where none is left, a stage that ends
takes the lock and keeps its run by itself. What nobody took, the next recorder plays from its beginning, which gives
the same run: it is the same ``Start``. A run whose process is gone without a word ends as KILLED.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from pipeline.tracking.run import PROCESS, Run, Start, Warned, now, warn
from pipeline.utils import platform, processes

POLL_SECONDS = 0.5
DRAIN_SECONDS = 10.0
"""How long a recorder that ends waits for stages still at work: interrupted, they are about to end too."""

Begin = Callable[[Start], Run]
"""Open the run that keeps a stage's record; opened again with an equal ``Start``, it is the same run."""


def spool(folder: Path, start: Start, begin: Begin) -> Run | None:
    """A run that is written to the spool ``folder``; None if nobody there would read it."""
    try:
        if free := _claim(folder, probe=True):
            free.close()
            return None
        return _SpooledRun(folder, start, begin)
    except OSError:  # a full disk, a folder removed meanwhile
        return None


@contextmanager
def recorder(folder: Path, begin: Begin) -> Iterator[bool]:
    """Keep with ``begin`` what stages spool to ``folder`` while the body runs; False: it cannot be done here."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _claim(folder)
    except OSError:
        lock = None
    if not lock:
        yield False
        return
    # It sleeps first, and imports nothing before a stage has begun: the body can fork meanwhile.
    stop = threading.Event()
    thread = threading.Thread(target=_record, args=(folder, begin, stop, lock), name="recorder", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        stop.set()
        thread.join()


def _record(folder: Path, begin: Begin, stop: threading.Event, lock: IO[str]) -> None:
    with lock:  # until it is closed
        try:
            player = _Player(folder, begin)
            while not stop.wait(POLL_SECONDS):
                player.play()
            deadline = time.monotonic() + DRAIN_SECONDS
            while player.play() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 5)
            _remove(folder)
        except Exception as error:
            warn("these stages", error)


def _claim(folder: Path, *, probe: bool = False) -> IO[str] | None:
    """The lock of the recorder, held until it is closed; None if another has it."""
    lock = folder.with_suffix(".lock").open("w", encoding="utf-8")
    try:
        platform.lock(lock, shared=probe)
    except OSError:
        lock.close()
        return None
    return lock


def _remove(folder: Path) -> None:
    with suppress(OSError):  # a stage at work is in it
        folder.rmdir()


class _SpooledRun(Warned):
    def __init__(self, spool: Path, start: Start, begin: Begin) -> None:
        super().__init__(start.stage)
        self._spool, self._begin, self._files = spool, begin, 0
        name = f"{time.time_ns()}-{os.getpid()}"  # in the order of their beginning
        made = spool / f".{name}"
        made.mkdir()
        (made / "start.json").write_text(json.dumps(asdict(start)), encoding="utf-8")
        self._lines = (made / "lines").open("ab", buffering=0)
        self._folder = made.rename(spool / name)  # there only when it is whole

    def log(self, metrics: Mapping[str, float], step: int | None = None, when: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._write("log", values, None if step is None else int(step), when or now())

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self._attempt(lambda: self._write("artifact", self._copy(path), folder))

    def tag(self, key: str, value: str) -> None:
        self._write("tag", key, value)

    def table(self, path: Path, name: str) -> None:
        self._attempt(lambda: self._write("table", self._copy(path), name))

    def close(self, status: str, when: int | None = None) -> None:
        self._write("close", status, when or now())
        self._lines.close()
        self._attempt(self._keep_what_nobody_does)

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

    def _keep_what_nobody_does(self) -> None:
        if self._folder.exists() and (lock := _claim(self._spool)):
            with lock:
                _Player(self._spool, self._begin).play()
                _remove(self._spool)


class _Player:
    """Makes the calls that stages wrote to a spool."""

    def __init__(self, spool: Path, begin: Begin) -> None:
        self._spool, self._begin = spool, begin
        self._playing: dict[Path, _Playback] = {}

    def play(self) -> bool:
        """Make the calls that have come; whether there are runs that go on."""
        # Listed before any is read: of stages one after another, the end of the first is seen before the next begins.
        for folder in sorted(path for path in self._spool.iterdir() if not path.name.startswith(".")):
            try:
                if folder not in self._playing:
                    self._playing[folder] = _Playback(folder, self._begin)
                ended = self._playing[folder].play()
            except Exception as error:  # a line cut off by a full disk: this run's end, and no other's
                warn("a stage", error)
                ended = True
            if ended:
                self._playing.pop(folder, None)
                shutil.rmtree(folder, ignore_errors=True)
        return bool(self._playing)


class _Playback:
    """One run of a spool."""

    def __init__(self, folder: Path, begin: Begin) -> None:
        start = Start(**json.loads((folder / "start.json").read_text(encoding="utf-8")))
        self._folder, self._process = folder, start.tags[PROCESS]
        self._at = 0
        self._run = begin(start)

    def play(self) -> bool:
        """Make the calls that have come; whether the run has ended."""
        gone = processes.is_gone(self._process)  # asked first: what it wrote before is then read
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

    def _call(self, name: str, *arguments: object) -> bool:
        if name in ("artifact", "table"):
            copy, *rest = arguments
            arguments = (self._folder / str(copy), *rest)
        getattr(self._run, name)(*arguments)
        return name == "close"
