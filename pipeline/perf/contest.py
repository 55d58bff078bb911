"""The same work done twice, by this project and by what people would use instead, in turns and timed."""

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
"""What ours took and what the peer's took, of the same work in one turn."""


class DiffersError(Exception):
    """Ours and the peer's did not compute the same thing, so that their times say nothing."""


@dataclass(frozen=True)
class Floor:
    """A lower bound of ours: a part of the work that it cannot leave out.

    Attributes:
        what: the part. seconds: does that part alone and says how long it took.
    """

    what: str
    seconds: Callable[[], float]


@dataclass(frozen=True)
class Contest:
    """One piece of work and two ways to do it.

    Attributes:
        work: what is done, sizes included. peer: whose way it is compared with.
        aim: the largest ratio of times, ours over the peer's, that is aimed at.
        same: shows that both compute the same thing and says how nearly; called once, before the turns.
        turns: count → seconds of both, turn after turn.
        count: turns that are timed. warm_ups: turns before them that are not; none where ``same`` has done the work.
        floor: timed where the aim is missed.
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
    """A contest's outcome: medians over the turns, and of the ratio the quartiles too; times in milliseconds.

    ``floor`` is empty, and ``floor_ms`` no number, where none was timed.
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


def hold(contest: Contest) -> Row:
    """Check that both sides of ``contest`` compute the same; time them in turns and, if the aim is missed, its floor.

    Raises:
        DiffersError: they do not.
    """
    same = contest.same()
    gc.collect()
    taken = np.array(contest.turns(contest.warm_ups + contest.count))[contest.warm_ups :]  # (count, 2)
    low, middle, high = np.quantile(taken[:, 0] / taken[:, 1], [0.25, 0.5, 0.75]).tolist()
    ours_ms, peer_ms = (1000 * np.median(taken, axis=0)).tolist()
    row = Row(contest.work, contest.peer, machine(), ours_ms, peer_ms, middle, low, high, contest.aim, same)
    if contest.floor is None or row.ratio <= row.aim:
        return row
    return replace(row, floor=contest.floor.what, floor_ms=1000 * contest.floor.seconds())


def in_turns(
    ours: Callable[[], object], theirs: Callable[[], object], repeat: int = 1
) -> Callable[[int], list[Seconds]]:
    """``Contest.turns`` of two functions, each called ``repeat`` times a turn, now one first and now the other.

    Whatever the machine does for a while, such as slowing down, then meets both alike.
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
    """Seconds of one of ``repeat`` calls."""
    begin = perf_counter()
    for _ in range(repeat):
        work()
    return (perf_counter() - begin) / repeat


def median_seconds(work: Callable[[], object], count: int = 3) -> float:
    """The median of ``count`` calls, after one that warms up."""
    return median([timed(work) for _ in range(count + 1)][1:])


def nearly_equal(ours: Any, theirs: Any, tolerance: float, what: str) -> str:
    """Say by how much two arrays differ, relative to the largest number in the peer's.

    Raises:
        DiffersError: by more than ``tolerance``, or in shape.
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
    """Processor, CPUs and PyTorch's threads: rows of different machines are not to be compared."""
    return f"{platform.processor()}, {cores()} CPUs, {torch.get_num_threads()} threads"
