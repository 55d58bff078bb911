"""Time the same work in turns, done by this project ("ours") and by the tool that people would use instead ("peer")."""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from pipeline.utils import platform
from pipeline.utils.hardware import cores

Seconds = tuple[float, float]
"""Seconds of ours and of the peer's for the same work in one turn."""


class DiffersError(Exception):
    """Ours and the peer's gave different results, so that their times cannot be compared."""


@dataclass(frozen=True)
class Floor:
    """A lower bound of the time of ours: a part of the work that it cannot leave out.

    Attributes:
        what: the part. seconds: does that part alone and returns its time.
    """

    what: str
    seconds: Callable[[], float]


@dataclass(frozen=True)
class Comparison:
    """One piece of work and two ways to do it.

    Attributes:
        work: description of the work, with sizes. peer: the tool that it is compared with.
        aim: the target for the ratio of times, ours over the peer's: at most this.
        same: checks that both compute the same and says how closely; called once, before the turns.
        turns: count → seconds of both in each turn.
        count: timed turns. warm_ups: untimed turns before them; 0 if ``same`` has done the work already.
        floor: timed if the aim is missed.
    """

    work: str
    peer: str
    aim: float
    same: Callable[[], str]
    turns: Callable[[int], list[Seconds]]
    count: int = 9
    warm_ups: int = 1
    floor: Floor | None = None


@dataclass(frozen=True)
class Row:
    """A comparison's result: medians over the turns, for the ratio also the quartiles; times in milliseconds.

    If no floor was timed, ``floor`` is empty and ``floor_ms`` is NaN.
    """

    work: str
    peer: str
    machine: str
    ours_ms: float
    peer_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    aim: float
    same_result: str
    floor: str = ""
    floor_ms: float = math.nan


def hold(comparison: Comparison) -> Row:
    """Check that both sides compute the same; time them in turns and, if the aim is missed, the floor.

    Raises:
        DiffersError: they compute different results.
    """
    same = comparison.same()
    gc.collect()
    taken = np.array(comparison.turns(comparison.warm_ups + comparison.count))[comparison.warm_ups :]  # (count, 2)
    low, middle, high = np.quantile(taken[:, 0] / taken[:, 1], [0.25, 0.5, 0.75]).tolist()
    ours_ms, peer_ms = (1000 * np.median(taken, axis=0)).tolist()
    row = Row(comparison.work, comparison.peer, machine(), ours_ms, peer_ms, middle, low, high, comparison.aim, same)
    if comparison.floor is None or row.ratio <= row.aim:
        return row
    return replace(row, floor=comparison.floor.what, floor_ms=1000 * comparison.floor.seconds())


def in_turns(
    ours: Callable[[], object], theirs: Callable[[], object], repeat: int = 1
) -> Callable[[int], list[Seconds]]:
    """Make ``Comparison.turns`` from two functions, each called ``repeat`` times per turn, in alternating order.

    A temporary effect of the machine, such as a slowdown, then affects both alike.
    """

    def turns(count: int) -> list[Seconds]:
        taken: list[Seconds] = []
        for turn in range(count):
            if turn % 2:
                theirs_s, ours_s = timed(theirs, repeat), timed(ours, repeat)
            else:
                ours_s, theirs_s = timed(ours, repeat), timed(theirs, repeat)
            taken.append((ours_s, theirs_s))
        return taken

    return turns


def timed(work: Callable[[], object], repeat: int = 1) -> float:
    """Return the mean seconds of ``repeat`` calls."""
    begin = perf_counter()
    for _ in range(repeat):
        work()
    return (perf_counter() - begin) / repeat


def median_seconds(work: Callable[[], object], count: int = 3) -> float:
    """Return the median seconds of ``count`` calls after one warm-up call."""
    return median([timed(work) for _ in range(count + 1)][1:])


def nearly_equal(ours: Any, theirs: Any, tolerance: float, what: str) -> str:
    """Report by how much two arrays differ, relative to the largest number in the peer's.

    Raises:
        DiffersError: they differ by more than ``tolerance``, or in shape.
    """
    a, b = (torch.as_tensor(x).detach().double() for x in (ours, theirs))
    if a.shape != b.shape:
        raise DiffersError(f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}")
    if torch.equal(a, b):
        return f"{what}: equal to the bit"
    difference = float((a - b).abs().max() / b.abs().max())
    if not difference <= tolerance:
        raise DiffersError(f"{what}: relative difference {difference:.1e}, allowed: {tolerance:.1e}")
    return f"{what}: within {difference:.1e}"


def machine() -> str:
    """Describe processor, CPUs and PyTorch's threads; rows of different machines must not be compared."""
    return f"{platform.processor()}, {cores()} CPUs, {torch.get_num_threads()} threads"
