"""Measure the memory of processes together with that of their descendants."""

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
        children: bytes of all descendants, in the sample in which this sum was largest.
    """

    children: int = 0

    @property
    def total(self) -> int:
        """Return the peak in bytes: that of this process plus ``children``."""
        return platform.peak_memory() + self.children


@contextmanager
def peak_of_this_process() -> Iterator[Peak]:
    """Measure the peak resident memory of this process and its descendants while the body runs.

    The peak of this process is exact. A thread samples the others every ``SAMPLE_SECONDS`` and keeps the largest sum.
    All data-parallel processes (torchrun) are counted. A shared page counts once for each process that shares it.
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
    """Return the bytes in memory of process ``pid`` and its descendants; 0 if it is gone."""
    return sum(map(_resident, _below(pid)))


def _below(pid: int) -> list[psutil.Process]:
    """List process ``pid`` and all its descendants."""
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
