"""Measure the memory of processes together with all that they start."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from pipeline.utils import platform

SAMPLE_SECONDS = 1.0


@dataclass
class Peak:
    """The most memory so far.

    Attributes:
        children: bytes of the processes below, at the sample at which they were most.
    """

    children: int = 0

    @property
    def total(self) -> int:
        """Bytes, with the most that this process has had at any time."""
        return platform.peak_memory() + self.children


@contextmanager
def peak_of_this_process() -> Iterator[Peak]:
    """Measure the peak of the resident memory of this process and all below it while the body runs.

    That of this process is exact, that of others the most of samples ``SAMPLE_SECONDS`` apart, taken by a thread. Of
    data-parallel processes (torchrun) all are counted. Pages that processes share count once for each.
    """
    peak, done = Peak(), threading.Event()

    def sample() -> None:
        own = os.getpid()
        top = os.getppid() if "RANK" in os.environ else own
        while not done.wait(SAMPLE_SECONDS):
            peak.children = max(peak.children, sum(_resident(p) for p in _below(top) if p.pid != own))

    thread = threading.Thread(target=sample, name="memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def resident(pid: int) -> int:
    """Bytes in memory of process ``pid`` and all below it; 0 if it is gone."""
    return sum(map(_resident, _below(pid)))


def _below(pid: int) -> list[psutil.Process]:
    """Process ``pid`` and all that it has started, and those in turn."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has ended
        return 0
