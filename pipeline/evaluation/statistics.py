"""Compute means over seeds with intervals.

The seed is the unit of replication. It draws the initial state, which repeats of one seed share. So repeats are first
averaged (or their best is taken) within each seed, and intervals are over seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

_DRAWS_AT_ONCE = 1 << 21  # resampled values in memory at a time: 16 MiB of indices


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, in the unit of the values; the bounds are NaN with a single seed."""

    mean: float
    low: float
    high: float

    def __format__(self, style: str) -> str:
        """``+0.12 [+0.09, +0.15]`` in the ``style`` ``+.2f`` of its numbers; a dash without a mean."""
        low, high = shown(self.low, style), shown(self.high, style)
        return "—" if math.isnan(self.mean) else f"{shown(self.mean, style)} [{low}, {high}]"


def shown(value: float | None, style: str = ".3f") -> str:
    """A number in a format ``style``, to be read; a dash where there is none."""
    return "—" if value is None or math.isnan(value) else f"{value:{style}}".replace("%", " %")


def mean_interval(values: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Compute the mean of ``values`` (S,) or (S, R) with a percentile bootstrap interval over S seeds (Efron 1979).

    ``seed`` is for the resampling: the same arguments give the same interval.

    Raises:
        ValueError: the values are empty or not finite, or have another number of dimensions.
    """
    means = _seed_means(values)
    # relative to the first value, so that equal values give an interval of width exactly zero
    origin = means[0]
    centred = means - origin
    mean = float(origin + centred.mean())
    if len(means) == 1:
        return Interval(mean, float("nan"), float("nan"))
    resampled = np.empty(resamples)
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // len(means))
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        picks = generator.integers(0, len(means), (stop - start, len(means)))
        resampled[start:stop] = centred[picks].mean(axis=1)
    low, high = origin + np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    seeds_a: Sequence[int] | NDArray[np.integer],
    seeds_b: Sequence[int] | NDArray[np.integer],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Compute the mean of a − b on the same seeds, with a bootstrap interval over seeds.

    ``a`` and ``b`` are (S,) or (S, R), where R may differ. Row i of each belongs to ``seeds_a[i]`` and ``seeds_b[i]``.
    Pairing removes the spread between easy and hard initial states, so the interval is narrower than that of two means.

    Raises:
        ValueError: the seeds of both sides differ, a seed repeats, or there is not one seed for each row.
    """
    means_a, means_b = _seed_means(a), _seed_means(b)
    if not np.array_equal(seeds_a, seeds_b):
        raise ValueError("a paired difference needs the same seeds in the same order on both sides")
    if not len(np.unique(seeds_a)) == len(means_a) == len(means_b):
        raise ValueError(f"{len(np.unique(seeds_a))} distinct seeds for {len(means_a)} and {len(means_b)} rows")
    return mean_interval(means_a - means_b, confidence, resamples, seed)


def proportion_interval(successes: ArrayLike, confidence: float = 0.95) -> Interval:
    """Compute the share of successes in ``successes`` (S,) or (S, R) of 0 and 1, with a Wilson score interval.

    A bootstrap interval would have width zero at 0 and at 1, as if 0 of 500 proved a rate of 0. Wilson's (1927) is
    sound there (Brown, Cai and DasGupta 2001). Repeats of one seed are not independent, so n is the effective sample
    size p(1 − p) / Var(p̂), with Var(p̂) estimated between seeds (Korn and Graubard 1998). It is clipped to [S, S·R]: S
    would be right for identical repeats, S·R for independent ones. With R = 1 this is the plain Wilson interval.

    Raises:
        ValueError: there are values other than 0 and 1, no values, or another number of dimensions.
    """
    if not np.isin(successes, (0, 1)).all():
        raise ValueError("successes must be 0 or 1")
    rates = _seed_means(successes)
    p, seeds = float(rates.mean()), len(rates)
    variance = float(rates.var(ddof=1)) / seeds if seeds > 1 else 0.0
    n = float(np.clip(p * (1 - p) / variance, seeds, np.size(successes))) if variance > 0 else float(seeds)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    # keep rounding from moving a bound past the estimate, or past 0 and 1
    return Interval(p, min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p))


def best_of_repeats(values: ArrayLike) -> float:
    """Compute the mean over seeds of the best of R repeats, ``values`` (S, R): the first number of the paper's ``a/b``.

    It grows with R for any noisy policy, so compare it only at equal R.

    Raises:
        ValueError: the values are not (S, R), not finite, or empty.
    """
    array = _checked(values)
    if array.ndim != 2:
        raise ValueError(f"the best of repeats needs values of shape (seeds, repeats), not {array.shape}")
    return float(array.max(axis=1).mean())


def _seed_means(values: ArrayLike) -> NDArray[np.float64]:
    array = _checked(values)
    return array if array.ndim == 1 else array.mean(axis=1)


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"values must be (seeds,) or (seeds, repeats) and not empty, not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite")
    return array
