"""Run works in processes forked from this one, with their output passed on and none ever left behind.

Each shares all that this process has read, and has a process group of its own, so that Ctrl-C in a terminal reaches
this process alone, which then interrupts all of them. When it is killed itself, the kernel kills them.
"""

import multiprocessing
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.context import ForkProcess
from socket import socket
from typing import NamedTuple

from pipeline.orchestration.output import Pipe, Screen
from pipeline.utils.platform import die_with_parent
from pipeline.utils.processes import GRACE_SECONDS

POLL_SECONDS = 0.05

Work = Callable[[], int]
"""What a process does: a function that returns its exit code."""


class _Child(NamedTuple):
    name: str
    process: ForkProcess
    pipes: list[Pipe]
    ended: Callable[[int], object]
    passes: bool


class Children:
    """The processes at work, and the files that are waited for meanwhile.

    Only a process without other threads may have them: locks that those hold stay locked. But for threads of libraries
    that see to it themselves when a process forks, as OpenBLAS and jemalloc do.
    """

    def __init__(self, screen: Screen | None = None) -> None:
        """Children whose output goes to a screen; None: where that of this process goes."""
        self._screen = screen
        self._at_work: list[_Child] = []
        self.private = set[int]()  # file descriptors that children close: a reader waits for the last writer's end
        self._selector = selectors.DefaultSelector()

    def pids(self) -> dict[str, int]:
        """Names of those at work, with the ids of their processes; of several of a name the last one's."""
        return {child.name: child.process.pid or 0 for child in self._at_work}

    def start(
        self,
        name: str,
        work: Work,
        ended: Callable[[int], object],
        stdio: Sequence[int] = (),
        *,
        passes: bool = False,
    ) -> int:
        """Do ``work`` in a process of its own, and call ``ended`` with its exit code; return its process id.

        Args:
            stdio: file descriptors for its stdin, stdout and stderr, which are closed here.
            passes: another child passes an interrupt on to it, so that it needs none from here.
        """
        pipes = [Pipe(name, stream, self._screen) for stream in (sys.stdout, sys.stderr)] if self._screen else []
        pipes = [] if stdio else pipes
        sinks = stdio or [os.open(os.devnull, os.O_RDONLY), *(pipe.sink for pipe in pipes)]
        process = multiprocessing.get_context("fork").Process(
            target=_do, args=(work, os.getpid(), sinks, self.private), daemon=True
        )
        process.start()
        for sink in sinks:
            os.close(sink)  # the process's own are the last ones: when it ends, so do the pipes
        for pipe in pipes:
            self.watch(pipe.source, partial(self._pump, pipe))
        self._at_work.append(_Child(name, process, pipes, ended, passes))
        if pipes and self._screen:
            self._screen.began(name)
        assert process.pid
        return process.pid

    def watch(self, file: int | socket, react: Callable[[], object]) -> None:
        """Call ``react`` when there is something to read."""
        self._selector.register(file, selectors.EVENT_READ, react)

    def forget(self, file: int | socket) -> None:
        """Watch ``file`` no more."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(file)

    def step(self) -> None:
        """React to what comes and to children that end, for a moment at most."""
        for key, _ in self._selector.select(POLL_SECONDS):
            key.data()
        for child in [child for child in self._at_work if child.process.exitcode is not None]:
            self._at_work.remove(child)
            for pipe in child.pipes:
                pipe.pump()  # all there is, though somebody whom the child left behind may go on writing
                self.forget(pipe.source)
                pipe.close()
            if child.pipes and self._screen:
                self._screen.ended(child.name)
            child.ended(child.process.exitcode or 0)
        if self._screen:
            self._screen.refresh()

    def _pump(self, pipe: Pipe) -> None:
        if not pipe.pump():
            self.forget(pipe.source)

    def stop(self) -> None:
        """Interrupt all, as Ctrl-C in a terminal does, and wait until they are gone; ``GRACE_SECONDS`` at most."""
        for child in self._at_work:
            if not child.passes:
                signal_group(child.process.pid, signal.SIGINT)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._at_work:
            self.step()
            if time.monotonic() > deadline:
                for child in self._at_work:
                    signal_group(child.process.pid, signal.SIGKILL)


def signal_group(group: int | None, number: int) -> None:
    """Send a signal to a child with all that it has started, unless they are gone."""
    with suppress(ProcessLookupError):
        os.killpg(group or 0, number)


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """The SIGINTs and SIGTERMs that have come: as exceptions, they might come between a child's start and its entry."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda number, _: received.append(number)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def _do(work: Work, parent: int, stdio: Sequence[int], private: Iterable[int]) -> None:
    """The life of a child."""
    os.setpgid(0, 0)
    die_with_parent(parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    multiprocessing.current_process().daemon = False  # or it may not have children
    for number, file in enumerate(stdio):
        os.dup2(file, number)
    for file in {*stdio, *private}:
        os.close(file)
    sys.exit(work())
