"""Samples for recorded windows: the same noise for every model and batch, and scores."""

import numpy as np
import pytest
import torch

from pipeline.evaluation.offline import SAMPLES, draw, persisted, score
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.windows import ReportedWindows

HORIZON, ACTION = 3, 2


def windows(count: int = 5) -> ReportedWindows:
    generator = np.random.default_rng(0)
    return ReportedWindows(
        state=generator.standard_normal((count, 2, 4)).astype(np.float32),
        action=generator.standard_normal((count, HORIZON, ACTION)).astype(np.float32),
        previous=generator.standard_normal((count, ACTION)).astype(np.float32),
        episode=np.zeros(count, dtype=np.int64),
        row=np.arange(10, 10 + count),
    )


class Echo:
    """Predicts the newest observation plus its noise; records batch sizes."""

    n_obs_steps, horizon, n_action_steps = 2, HORIZON, 1

    def __init__(self, noise_shape: tuple[int, ...], scale: float = 1.0) -> None:
        self.noise_shape, self.scale = noise_shape, scale
        self.batches: list[int] = []

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        self.batches.append(len(observations))
        plans = np.repeat(observations[:, -1:, :ACTION], HORIZON, axis=1)
        return plans + (noise * self.scale if noise.size else 0.0)


def test_noise_depends_on_the_window_only() -> None:
    one, other = Echo((HORIZON, ACTION)), Echo((HORIZON, ACTION), scale=2.0)
    drawn = draw(one, windows(), policy_batch_size=7)
    assert drawn.shape == (5, SAMPLES, HORIZON, ACTION) and set(one.batches) == {7}
    np.testing.assert_array_equal(draw(one, windows(), policy_batch_size=64), drawn)
    np.testing.assert_array_equal(draw(one, windows(2), policy_batch_size=7), drawn[:2])
    newest = windows().state[:, None, -1:, :ACTION]
    np.testing.assert_allclose(draw(other, windows(), policy_batch_size=7) - newest, 2 * (drawn - newest), atol=1e-5)
    assert len(np.unique(drawn - newest)) == drawn.size


def test_policies_without_noise_give_one_sample() -> None:
    assert draw(Echo((0,)), windows(), policy_batch_size=4).shape == (5, 1, HORIZON, ACTION)


def test_persistence_repeats_the_previous_action() -> None:
    given = windows()
    answers = persisted(given)
    assert answers.shape == (5, 1, HORIZON, ACTION)
    for step in range(HORIZON):
        np.testing.assert_array_equal(answers[:, 0, step], given.previous)


def test_scores_are_in_normalised_units() -> None:
    given = windows()
    normalizer = Normalizer.of(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 4.0]))
    off = given.action[:, None] + np.array([2.0, -4.0], dtype=np.float32)
    (scores,) = score(off, given, normalizer, 1)
    assert scores.error == pytest.approx(1.0, rel=1e-5)


def test_non_finite_predictions_are_refused() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        draw(Echo((HORIZON, ACTION), scale=np.inf), windows(), policy_batch_size=4)
