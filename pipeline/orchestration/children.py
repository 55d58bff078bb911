"""Run work in processes of its own, with their output passed on and none ever left behind.

A function runs in a process forked from this one, which shares all that this one has read; a command in a new one.
Each runs in a process group of its own, so that Ctrl-C in a terminal reaches this process alone, which then interrupts
all of them. When it is killed itself, the kernel kills them.
"""

import multiprocessing
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkProcess
from typing import NamedTuple

from pipeline.orchestration.output import Pipe, Screen
from pipeline.utils.platform import STARTER, die_with_parent
from pipeline.utils.processes import GRACE_SECONDS

POLL_SECONDS = 0.2

Work = Callable[[], int] | list[str]
"""What a process does: a function that returns its exit code, or a command."""


class _Child(NamedTuple):
    name: str
    process: "ForkProcess | _Command"
    pipes: list[Pipe]


class Children:
    """The processes at work. Only a process without other threads may have them: locks that those hold stay locked.

    But for threads of libraries that see to it themselves when a process forks, as OpenBLAS and jemalloc do.
    """

    def __init__(self, to: Screen | None) -> None:
        """Children whose output goes to a screen; None: where that of this process goes."""
        self._screen = to
        self._at_work: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()

    def __len__(self) -> int:
        return len(self._at_work)

    def start(self, name: str, work: Work) -> None:
        """Do ``work`` in a process of its own."""
        pipes = [Pipe(name, stream, self._screen) for stream in (sys.stdout, sys.stderr)] if self._screen else []
        sinks = [pipe.sink for pipe in pipes]
        process: ForkProcess | _Command
        if isinstance(work, list):
            process = _Command(work, sinks)
        else:
            fork = multiprocessing.get_context("fork")
            process = fork.Process(target=_do, args=(work, os.getpid(), sinks), daemon=True)
            process.start()
        for pipe in pipes:
            os.close(pipe.sink)  # the stage's own is the last one: when it ends, so does the pipe
            self._selector.register(pipe.source, selectors.EVENT_READ, pipe)
        self._selector.register(process.sentinel, selectors.EVENT_READ)
        self._at_work[process.sentinel] = _Child(name, process, pipes)
        if self._screen:
            self._screen.began(name)

    def pids(self) -> dict[str, int]:
        """Names of those at work, with the ids of their processes."""
        return {child.name: child.process.pid or 0 for child in self._at_work.values()}

    def wait(self) -> list[tuple[str, int | None]]:
        """Pass on output until a child ends, a while at most: the names of those that ended, and their exit codes."""
        ended = []
        for key, _ in self._selector.select(POLL_SECONDS):
            if key.data is None:
                self._selector.unregister(key.fd)
                ended.append(self._at_work.pop(key.fd))
            elif not key.data.pump():
                self._selector.unregister(key.fd)
        for child in ended:
            self._close(child)
        if self._screen:
            self._screen.refresh()
        return [(child.name, child.process.exitcode) for child in ended]

    def stop(self) -> None:
        """Interrupt all, as Ctrl-C in a terminal does, and wait until they are gone; ``GRACE_SECONDS`` at most."""
        self._signal(signal.SIGINT)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._at_work and time.monotonic() < deadline:
            self.wait()
        self._signal(signal.SIGKILL)
        while self._at_work:
            self.wait()

    def _signal(self, number: int) -> None:
        for child in self._at_work.values():
            assert child.process.pid
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, number)

    def _close(self, child: _Child) -> None:
        child.process.join()
        for pipe in child.pipes:
            pipe.pump()  # all there is, though somebody whom the child left behind may go on writing
            with suppress(KeyError):
                self._selector.unregister(pipe.source)
            pipe.close()
        if self._screen:
            self._screen.ended(child.name)


class _Command:
    """A process started with a command, in the shape of a forked one.

    Attributes:
        sentinel: a file descriptor that can be read from once the process has ended.
    """

    def __init__(self, command: Sequence[str], outputs: Sequence[int]) -> None:
        self.sentinel, held = os.pipe()  # the other end closes with the process, which inherits it
        out, err = outputs or (None, None)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            pass_fds=[held],
            process_group=0,
            env=os.environ | {STARTER: str(os.getpid())},
        )
        os.close(held)
        self.pid = self._process.pid

    def join(self) -> None:
        self._process.wait()
        os.close(self.sentinel)

    @property
    def exitcode(self) -> int | None:
        return self._process.returncode


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """The SIGINTs that have come: as exceptions, they might come after the start of a child and before it is known."""
    received: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)


def _do(work: Callable[[], int], parent: int, outputs: Sequence[int]) -> None:
    """The life of a child, with file descriptors for its stdout and stderr if they are not those of ``parent``."""
    os.setpgid(0, 0)
    die_with_parent(parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, output in enumerate(outputs, start=1):
        os.dup2(output, number)
        os.close(output)
    sys.exit(work())
