"""Means over seeds with intervals.

The seed is the unit of replication: it draws the initial state, and repeats of one seed share it, so they are averaged
(or their best is taken) inside the seed before anything is said about uncertainty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

_DRAWS_AT_ONCE = 1 << 21  # resampled values held in memory together: 16 MiB of indices


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, in the unit of the values; bounds are NaN where one seed is all there is."""

    mean: float
    low: float
    high: float


def mean_interval(values: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of ``values`` (S,) or (S, R) with a percentile bootstrap interval over the S seeds (Efron 1979).

    ``seed`` is the resampling's: the same arguments give the same interval.

    Raises:
        ValueError: no values, values that are not finite, another number of dimensions.
    """
    means = _seed_means(values)
    # measured from the first value, equal values give an interval of width exactly zero
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
    """Mean of a − b on the same seeds, bootstrapped over seeds.

    ``a`` and ``b`` are (S,) or (S, R), R may differ; row i of each was made with ``seeds_a[i]`` and ``seeds_b[i]``.
    Pairing removes the spread between easy and hard initial states, so the interval is narrower than that of two means.

    Raises:
        ValueError: the seeds differ, repeat, or do not count the rows.
    """
    means_a, means_b = _seed_means(a), _seed_means(b)
    if not np.array_equal(seeds_a, seeds_b):
        raise ValueError("a paired difference needs the same seeds in the same order on both sides")
    if not len(np.unique(seeds_a)) == len(means_a) == len(means_b):
        raise ValueError(f"{len(np.unique(seeds_a))} distinct seeds for {len(means_a)} and {len(means_b)} rows")
    return mean_interval(means_a - means_b, confidence, resamples, seed)


def proportion_interval(successes: ArrayLike, confidence: float = 0.95) -> Interval:
    """Share of successes in ``successes`` (S,) or (S, R) of 0 and 1, with a Wilson score interval.

    Not a bootstrap: at 0 and at 1 that has width zero, as if 0 of 500 proved a rate of 0. Wilson (1927) is sound there
    (Brown, Cai and DasGupta 2001). Repeats of one seed are not independent, so n is the effective sample size
    p(1 − p) / Var(p̂), Var(p̂) estimated between seeds (Korn and Graubard 1998), kept within [S, S·R]: S were the repeats
    copies of each other, S·R were they independent. With R = 1 this is the plain Wilson interval.

    Raises:
        ValueError: values other than 0 and 1, no values, another number of dimensions.
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
    # rounding must not push a bound past the estimate, nor past 0 and 1, where the exact bounds meet it
    return Interval(p, min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p))


def best_of_repeats(values: ArrayLike) -> float:
    """Mean over seeds of the best of R repeats, ``values`` (S, R): the first number of the paper's ``a/b``.

    Grows with R for any noisy policy, so it compares only at equal R.

    Raises:
        ValueError: values that are not (S, R), or not finite, or none.
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
