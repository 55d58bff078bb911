"""Aggregate scores over tasks, as is common in the field.

The statistics are those of Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice",
and of their library rliable.

A run is one training seed on one task: the scores of its test seeds, (S,). A method has a list of runs for each task.
Intervals are percentiles of a stratified bootstrap. It resamples training seeds within each task and test seeds within
each run. Two methods are paired on the test seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from pipeline.evaluation.statistics import Interval

Runs = Mapping[str, Sequence[NDArray[np.float64]]]
"""By task, the scores (S,) of each training seed; S is the same within a task."""


def interquartile_mean(runs: Runs, resamples: int = 2000, seed: int = 0) -> Interval:
    """Average the middle half of the tasks' mean scores over runs; robust to an outlying task."""
    return _interval([runs], lambda means: _iqm(means[0]), resamples, seed)


def probability_of_improvement(ours: Runs, theirs: Runs, resamples: int = 2000, seed: int = 0) -> Interval:
    """Estimate the probability that a run of ``ours`` outscores one of ``theirs`` on a random task; ties count half.

    Raises:
        ValueError: the tasks or the numbers of test seeds differ.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"tasks differ: {', '.join(ours)} and {', '.join(theirs)}")
    return _interval([ours, theirs], lambda means: _improvement(*means), resamples, seed)


def performance_profile(
    runs: Runs, thresholds: NDArray[np.float64], resamples: int = 500, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Compute the share of episodes that reach each of ``thresholds`` (T,), averaged over tasks.

    Returns:
        The share, and the lower and upper bounds of its interval, (T,) each.
    """
    reached = {task: [(run[:, None] >= thresholds).astype(float) for run in of_task] for task, of_task in runs.items()}
    return _bootstrapped([reached], lambda means: np.mean([each.mean(0) for each in means[0]], 0), resamples, seed)


_Means = list[NDArray[np.float64]]
"""By task, the mean of each run: (R,), or (R, T) if scores are vectors."""


def _iqm(means: _Means) -> float:
    return float(trim_mean([of_task.mean() for of_task in means], 0.25))


def _improvement(ours: _Means, theirs: _Means) -> float:
    of_task = []
    for a, b in zip(ours, theirs, strict=True):
        difference = np.subtract.outer(a, b)
        of_task.append(np.mean((difference > 0) + 0.5 * (difference == 0)))
    return float(np.mean(of_task))


def _interval(
    methods: Sequence[Runs], statistic: Callable[[list[_Means]], float], resamples: int, seed: int
) -> Interval:
    return Interval(*map(float, _bootstrapped(methods, statistic, resamples, seed)))


def _bootstrapped(
    methods: Sequence[Runs], statistic: Callable[[list[_Means]], Any], resamples: int, seed: int
) -> tuple[Any, Any, Any]:
    estimate = statistic([[np.array([run.mean(0) for run in of]) for of in runs.values()] for runs in methods])
    generator = np.random.default_rng(seed)
    drawn = [[_drawn(methods, task, generator) for task in methods[0]] for _ in range(resamples)]
    values = [statistic([[of_task[i] for of_task in one] for i in range(len(methods))]) for one in drawn]
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return estimate, low, high


def _drawn(methods: Sequence[Runs], task: str, generator: np.random.Generator) -> _Means:
    """Resample the runs of a task for each method, all on the same resampled test seeds, and return their means."""
    counts = sorted({len(run) for runs in methods for run in runs[task]})
    if len(counts) != 1:
        raise ValueError(f"{task}: runs of {counts} test seeds, allowed: as many in each")
    seeds = generator.integers(0, counts[0], counts[0])
    return [
        np.array([runs[task][i][seeds].mean(0) for i in generator.integers(0, len(runs[task]), len(runs[task]))])
        for runs in methods
    ]
