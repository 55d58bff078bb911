"""Write the results of one row of an offline task: its held-out episodes, and the metrics beside them."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline.evaluation.offline_scores import SCORES, EpisodeScores
from pipeline.reporting.rows import about
from pipeline.settings.paths import Entry, fingerprint
from pipeline.training.checkpoint import CheckpointMetadata
from pipeline.utils.atomic import write_text

ABOUT = ("scale", "evaluation", "method", "nfe", "train_seed", "checkpoint", "perturbation")
OFFLINE_COLUMNS = (*ABOUT, "episode", "windows", "repeats", *SCORES)


def write_offline_episodes(
    path: Path,
    results: Mapping[str, Sequence[EpisodeScores]],
    model: Path,
    metadata: CheckpointMetadata,
    entry: Entry,
    repeats: int,
) -> None:
    """Write a row for each episode as CSV, whole or not at all; a score that there is none of is an empty field.

    Args:
        results: by perturbation. model: the file that answered, of ``metadata``. repeats: answers to each window.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(OFFLINE_COLUMNS)
    for perturbation, episodes in results.items():
        values = metadata.scale, entry.evaluation, entry.method, entry.nfe, metadata.train_seed, fingerprint(model)
        for episode in episodes:
            scores = [_field(getattr(episode, name)) for name in SCORES]
            table.writerow((*values, perturbation, episode.episode, episode.windows, repeats, *scores))
    write_text(path, text.getvalue())


def offline_metrics(
    scores: Sequence[EpisodeScores], metadata: CheckpointMetadata, entry: Entry, repeats: int
) -> dict[str, object]:
    """Describe a row beyond its episodes: data, training and sampling, and the mean scores."""
    return about(metadata, entry, n_episodes=len(scores), repeats=repeats) | mean_of(scores)


def mean_of(scores: Sequence[EpisodeScores]) -> dict[str, float]:
    """Means over episodes, of those scores that there are."""
    values = {name: np.array([asdict(episode)[name] for episode in scores]) for name in SCORES}
    return {name: round(float(np.nanmean(v)), 6) for name, v in values.items() if not np.isnan(v).all()}


def _field(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
