"""Offline scores: closed forms of Gaussian samples, and aggregation by episode."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from pipeline.evaluation.offline_scores import EpisodeScores, crps, profiled_nll, score_episodes, seams
from pipeline.tasks.windows import ReportedWindows

NORMAL = NormalDist()


def windows(episode: list[int], row: list[int]) -> ReportedWindows:
    nothing = np.zeros((len(row), 1, 1), dtype=np.float32)
    return ReportedWindows(nothing, nothing, nothing[:, 0], np.array(episode), np.array(row))


def gaussian_crps(mean: float, deviation: float, at: float) -> float:
    """Gneiting and Raftery 2007, equation 21 without its sign."""
    z = (at - mean) / deviation
    return deviation * (z * (2 * NORMAL.cdf(z) - 1) + 2 * NORMAL.pdf(z) - 1 / math.sqrt(math.pi))


@pytest.mark.parametrize(("mean", "deviation", "at"), [(0.0, 1.0, 0.0), (0.5, 0.3, -0.4), (-1.0, 2.0, 3.0)])
def test_crps_of_gaussian_samples_is_the_closed_form(mean: float, deviation: float, at: float) -> None:
    generator = np.random.default_rng(0)
    for count, repeats in ((2, 100_000), (16, 20_000)):
        samples = mean + deviation * generator.standard_normal((repeats, count, 1, 1))
        scores = crps(samples, np.full((repeats, 1, 1), at))
        error = scores.std() / math.sqrt(repeats)
        assert scores.mean() == pytest.approx(gaussian_crps(mean, deviation, at), abs=4 * error)
        assert error < 0.01 * deviation


def test_crps_of_one_sample_is_its_absolute_error() -> None:
    recorded = np.array([[[1.0, -2.0]]])
    np.testing.assert_array_equal(crps(np.zeros((1, 1, 1, 2)), recorded), np.abs(recorded))


def test_crps_is_the_mean_over_all_pairs_of_samples() -> None:
    generator = np.random.default_rng(1)
    samples, recorded = generator.standard_normal((3, 5, 2, 2)), generator.standard_normal((3, 2, 2))
    apart = np.abs(samples[:, :, None] - samples[:, None]).sum((1, 2)) / (5 * 4)
    expected = np.abs(samples - recorded[:, None]).mean(1) - apart / 2
    np.testing.assert_allclose(crps(samples, recorded), expected, rtol=1e-12)


def test_profiled_likelihood_of_gaussian_errors_is_the_closed_form() -> None:
    generator = np.random.default_rng(2)
    deviations = np.array([0.1, 0.5, 2.0])
    errors = deviations * generator.standard_normal((2000, 4, 3))
    nll = profiled_nll(errors)
    assert nll.mean() == pytest.approx(0.5 * np.log((errors**2).mean((0, 1))).mean(), rel=1e-12)
    assert nll.mean() == pytest.approx(np.log(deviations).mean(), abs=0.02)
    assert np.isfinite(profiled_nll(errors * [1, 1, 0])).all()


def test_scores_of_a_calibrated_model_match_closed_forms() -> None:
    """Samples and record drawn from one Gaussian of deviation s, independently for each component."""
    generator, s = np.random.default_rng(3), 0.3
    samples, recorded = s * generator.standard_normal((4000, 16, 1, 2)), s * generator.standard_normal((4000, 1, 2))
    (scores,) = score_episodes(samples, recorded, windows([0] * 4000, list(range(4000))), 1)
    assert scores.windows == 4000
    assert scores.error == pytest.approx(math.sqrt(2) * s, rel=0.02)
    assert scores.mean_error == pytest.approx(math.sqrt(1 + 1 / 16) * s, rel=0.02)
    assert scores.spread == pytest.approx(s, rel=0.02)
    assert scores.nll == pytest.approx(math.log(math.sqrt(2) * s), abs=0.02)
    assert scores.crps == pytest.approx(s / math.sqrt(math.pi), rel=0.02)
    assert scores.jump == pytest.approx(math.sqrt(2) * s, rel=0.02)
    assert scores.jump_recorded == pytest.approx(math.sqrt(2) * s, rel=0.04)
    assert 0 < scores.best_of_k < scores.error / 2


def test_scores_of_a_deterministic_forecast() -> None:
    recorded = np.zeros((3, 2, 1))
    (scores,) = score_episodes(np.full((3, 1, 2, 1), 0.2), recorded, windows([5] * 3, [7, 8, 9]), 2)
    for name in ("error", "best_of_k", "mean_error", "crps"):
        assert getattr(scores, name) == pytest.approx(0.2)
    assert (scores.episode, scores.spread) == (5, 0.0)
    assert scores.jump == scores.jump_recorded == 0.0


def test_episodes_are_scored_separately_and_their_likelihoods_average() -> None:
    generator = np.random.default_rng(4)
    samples, recorded = generator.standard_normal((6, 3, 2, 2)), generator.standard_normal((6, 2, 2))
    samples[4:] *= 5
    both = windows([0, 0, 0, 0, 3, 3], [1, 2, 3, 4, 20, 21])
    first, second = score_episodes(samples, recorded, both, 1)
    (alone,) = score_episodes(samples[:4], recorded[:4], windows([0] * 4, [1, 2, 3, 4]), 1)
    assert (first.windows, second.windows) == (4, 2)
    for name in ("error", "best_of_k", "mean_error", "crps", "spread", "jump", "jump_recorded"):
        assert getattr(first, name) == pytest.approx(getattr(alone, name), rel=1e-12)
    errors = samples - recorded[:, None]
    together = 0.5 * np.log((errors**2).mean((0, 1))).mean()
    assert (4 * first.nll + 2 * second.nll) / 6 == pytest.approx(together, rel=1e-12)
    assert isinstance(first, EpisodeScores) and first.error < second.error


def test_seams_join_plans_of_one_episode_only() -> None:
    before, after = seams(windows([0, 0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 5, 7, 9]), 2)
    assert list(zip(before.tolist(), after.tolist(), strict=True)) == [(0, 2), (1, 3), (4, 5), (5, 6)]
    (scores,) = score_episodes(np.ones((2, 1, 3, 1)), np.zeros((2, 3, 1)), windows([0, 0], [1, 2]), 3)
    assert math.isnan(scores.jump)


def test_the_seam_is_between_the_last_executed_action_and_the_next_first_one() -> None:
    plans = np.arange(8.0).reshape(2, 1, 4, 1)  # 0 1 2 3, then 4 5 6 7
    recorded = np.array([[[0.0], [3.0], [9.0], [9.0]], [[4.0], [9.0], [9.0], [9.0]]])
    (scores,) = score_episodes(plans, recorded, windows([0, 0], [1, 3]), 2)
    assert (scores.jump, scores.jump_recorded) == (3.0, 1.0)
