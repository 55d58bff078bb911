"""The precision table, from episodes with known scores."""

import pytest

from pipeline.evaluation.diversity import Diversity
from pipeline.evaluation.precision import Variation
from pipeline.evaluation.rollouts import EpisodeResult
from pipeline.reporting.precision import PRECISION_HEADER, precision_rows, precision_table
from pipeline.settings.schema import DataSettings, MlpSettings
from pipeline.training.checkpoint import CheckpointMetadata

DATA = DataSettings(
    dataset="pusht_human", observation="pose", n_obs_steps=1, horizon=16, n_action_steps=8, validation_fraction=0.1
)
NET = MlpSettings(kind="mlp", width=8, depth=1, expansion=1, time_features=4)
RECORD = CheckpointMetadata("lab", "pusht", "fm", 4, 100, 0, DATA, NET, {})


def episodes(*scores: float) -> list[EpisodeResult]:
    return [EpisodeResult(seed, 0, score, score, score == 1, 10) for seed, score in enumerate(scores)]


def test_rows_count_near_misses_and_compare_with_the_unchanged_policy() -> None:
    as_made, calm = Variation("", 4, 8), Variation("noise x 0", 4, 8, noise_scale=0.0)
    outcomes = {as_made: episodes(1.0, 0.95, 0.9, 0.5), calm: episodes(1.0, 1.0, 0.8, 0.4)}
    samples = {as_made: Diversity(0.2, 0.1, 0.3), calm: Diversity(0.0, 0.1, 0.25)}
    table = precision_table(precision_rows(RECORD, "model@0123", "pusht_b", outcomes, samples))
    assert list(table) == PRECISION_HEADER.split(",")
    assert list(table["success"]) == [0.25, 0.5] and list(table["near_misses"]) == [0.5, 0.0]
    assert table["success_diff"][1] == 0.25 and table["score_diff"][1] == pytest.approx(-0.0375)
    assert table["score_diff_low"][1] < table["score_diff"][1] < table["score_diff_high"][1]
    assert table["score_diff"].isna()[0] and list(table["spread"]) == [0.2, 0.0]
