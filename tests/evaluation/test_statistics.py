"""Confidence intervals against scipy and closed forms, and their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats

from pipeline.evaluation import statistics
from pipeline.evaluation.statistics import best_of_repeats, mean_interval, paired_difference, proportion_interval

scores = arrays(np.float64, array_shapes(min_dims=1, max_dims=2, max_side=12), elements=st.floats(0, 1))
outcomes = arrays(np.int64, array_shapes(min_dims=1, max_dims=2, max_side=30), elements=st.integers(0, 1))


def test_the_bootstrap_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).beta(2, 1, 200)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    interval = mean_interval(values, resamples=2000, seed=0)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_bootstrap_of_many_seeds_nears_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    interval = mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (interval.mean - interval.low, interval.high - interval.mean) == pytest.approx((half, half), rel=0.05)


def test_repeats_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(1).random(50)
    assert mean_interval(np.tile(values[:, None], 10), resamples=500) == mean_interval(values, resamples=500)


def test_memory_bound_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(37)
    whole = mean_interval(values, resamples=501)
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 100)
    assert mean_interval(values, resamples=501) == whole


@settings(deadline=None)
@given(scores, st.floats(-2, 2))
def test_an_interval_lies_within_the_values_and_moves_with_them(values: np.ndarray, shift: float) -> None:
    interval = mean_interval(values, resamples=200)
    moved = mean_interval(values + shift, resamples=200)
    assert moved.mean == pytest.approx(interval.mean + shift, abs=1e-9)
    if len(values) == 1:
        assert np.isnan([interval.low, interval.high]).all()
    else:
        assert values.min() - 1e-12 <= interval.low <= interval.high <= values.max() + 1e-12
        assert (moved.low, moved.high) == pytest.approx((interval.low + shift, interval.high + shift), abs=1e-9)


def test_equal_values_give_width_zero() -> None:
    interval = mean_interval([0.1] * 500, resamples=100)
    assert interval.low == interval.mean == interval.high == 0.1


def test_pairing_is_narrower_than_two_means_and_antisymmetric() -> None:
    generator = np.random.default_rng(2)
    difficulty = generator.random(100)
    seeds = np.arange(100_000, 100_100)
    a, b = difficulty + 0.02 * generator.normal(size=100) + 0.01, difficulty + 0.02 * generator.normal(size=100)
    forth, back = paired_difference(a, b, seeds, seeds), paired_difference(b, a, seeds, seeds)
    alone = mean_interval(a)
    assert forth.high - forth.low < 0.2 * (alone.high - alone.low)
    assert (back.mean, back.low, back.high) == pytest.approx((-forth.mean, -forth.high, -forth.low), abs=1e-3)


@pytest.mark.parametrize("seeds_b", [[0, 1, 3], [0, 2, 1], [0, 1]])
def test_unpaired_seeds_are_refused(seeds_b: list[int]) -> None:
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0][: len(seeds_b)], [0, 1, 2], seeds_b)


def test_repeated_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct seeds"):
        paired_difference([1.0, 2.0], [1.0, 2.0], [0, 0], [0, 0])


@pytest.mark.parametrize("hits", [0, 1, 70, 499, 500])
def test_without_repeats_the_proportion_is_plain_wilson(hits: int) -> None:
    expected = stats.binomtest(hits, 500).proportion_ci(method="wilson")
    interval = proportion_interval(np.arange(500) < hits)
    assert (interval.mean, interval.low, interval.high) == pytest.approx(
        (hits / 500, expected.low, expected.high), abs=1e-12
    )


def test_effective_sample_size_runs_from_copied_to_independent_repeats() -> None:
    single = (np.random.default_rng(0).random(200) < 0.3).astype(int)
    copies = proportion_interval(np.tile(single[:, None], 10))
    assert (copies.low, copies.high) == pytest.approx(
        (proportion_interval(single).low, proportion_interval(single).high), abs=1e-3
    )
    independent = np.random.default_rng(0).random((200, 10)) < 0.3
    pooled = stats.binomtest(int(independent.sum()), 2000).proportion_ci(method="wilson")
    interval = proportion_interval(independent)
    assert (interval.low, interval.high) == pytest.approx((pooled.low, pooled.high), abs=6e-3)


def test_the_interval_covers_the_true_rate_of_clustered_repeats() -> None:
    generator = np.random.default_rng(0)
    true_rates = generator.beta(0.5, 2.0, (400, 100, 1))  # 400 experiments of 100 seeds, mean rate 0.2
    draws = generator.random((400, 100, 5)) < true_rates
    intervals = [proportion_interval(draw) for draw in draws]
    assert 0.92 <= np.mean([i.low <= 0.2 <= i.high for i in intervals]) <= 0.98


@given(outcomes)
def test_a_proportion_lies_in_its_interval_and_never_claims_certainty(successes: np.ndarray) -> None:
    interval = proportion_interval(successes)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.low < interval.high


def test_best_of_repeats_takes_the_best_inside_each_seed() -> None:
    assert best_of_repeats([[0.2, 0.6], [1.0, 0.0]]) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="shape"):
        best_of_repeats([0.2, 0.6])


@pytest.mark.parametrize("values", [[], [0.1, np.nan], [[[1.0]]]])
def test_unusable_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values must be"):
        mean_interval(values)


def test_successes_other_than_zero_and_one_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or 1"):
        proportion_interval([0.5, 1.0])
