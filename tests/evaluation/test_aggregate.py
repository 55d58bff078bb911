"""Aggregates over tasks against their definitions, counted by hand."""

import numpy as np
import pytest

from pipeline.evaluation.aggregate import interquartile_mean, performance_profile, probability_of_improvement


def runs(**means: list[float]) -> dict[str, list[np.ndarray]]:
    """Runs of four equal test seeds, so that their means are certain."""
    return {task: [np.full(4, mean) for mean in of_task] for task, of_task in means.items()}


def test_interquartile_mean_excludes_the_best_and_worst_quarter_of_tasks() -> None:
    found = interquartile_mean(runs(a=[0.0], b=[0.3, 0.5], c=[0.6], d=[1.0]))
    assert found.mean == pytest.approx(0.5)
    assert found.low == pytest.approx((0.3 + 0.6) / 2) and found.high == pytest.approx((0.5 + 0.6) / 2)


def test_the_probability_of_improvement_counts_pairs_of_runs_and_ties_half() -> None:
    ours, theirs = runs(a=[0.5, 0.9], b=[0.2]), runs(a=[0.5, 0.6], b=[0.1])
    assert probability_of_improvement(ours, theirs).mean == pytest.approx((2.5 / 4 + 1) / 2)
    assert probability_of_improvement(theirs, ours).mean == pytest.approx((1.5 / 4 + 0) / 2)
    same = probability_of_improvement(ours, ours)
    assert same.mean == 0.5


def test_methods_are_paired_on_test_seeds() -> None:
    """A method that is a little better on every test seed is better in every resample of them."""
    hard = np.linspace(0, 0.9, 50)
    found = probability_of_improvement({"a": [hard + 0.01]}, {"a": [hard]})
    assert (found.mean, found.low, found.high) == (1, 1, 1)
    noise = np.random.default_rng(0).normal(0, 0.3, 50)
    unsure = probability_of_improvement({"a": [hard + noise - noise.mean() + 0.01]}, {"a": [hard]})
    assert unsure.low == 0 and unsure.high == 1


def test_performance_profile_weights_tasks_equally() -> None:
    scores = {"a": [np.array([0.0, 0.5, 1.0, 1.0])], "b": [np.array([0.5, 0.5]), np.array([1.0, 0.0])]}
    share, low, high = performance_profile(scores, np.array([0.0, 0.5, 0.75]))
    np.testing.assert_allclose(share, [1, (3 / 4 + 3 / 4) / 2, (2 / 4 + 1 / 4) / 2])
    assert low[0] == high[0] == 1 and (low <= share).all() and (share <= high).all() and low[2] < high[2]


def test_differing_tasks_or_test_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^tasks differ: a and b$"):
        probability_of_improvement(runs(a=[1.0]), runs(b=[1.0]))
    with pytest.raises(ValueError, match=r"^a: runs of \[3, 4\] test seeds, allowed: as many in each$"):
        probability_of_improvement(runs(a=[1.0]), {"a": [np.ones(3)]})
