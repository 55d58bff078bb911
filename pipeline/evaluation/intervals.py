"""Intervals for a few independent repeats, too few for a bootstrap."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from pipeline.evaluation.statistics import Interval


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Compute the mean of ``values`` (S,) with Student's t interval; its bounds are NaN with a single value.

    For a few values the percentile bootstrap is too narrow: three values have ten different resamples, and the interval
    cannot leave their range. The t interval assumes about normal values, such as means over many images.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, math.nan, math.nan)
    quantile = stdtrit(len(array) - 1, (1 + confidence) / 2)
    half = float(quantile * array.std(ddof=1) / len(array) ** 0.5)
    return Interval(mean, mean - half, mean + half)
