"""Write the results of one row's rollouts: its episodes, and the metrics beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.evaluation.rollouts import UNPERTURBED, EpisodeResult, write_episodes
from pipeline.settings.paths import Entry, fingerprint
from pipeline.training.checkpoint import Record
from pipeline.utils.atomic import write_text


def write_row_episodes(
    path: Path, results: Mapping[str, Sequence[EpisodeResult]], model: Path, record: Record, method: str, nfe: int
) -> None:
    """Write the episodes of a row by evaluation, made by the model file ``model`` of ``record``."""
    undisturbed = {(evaluation, UNPERTURBED): episodes for evaluation, episodes in results.items()}
    write_all_episodes(path, undisturbed, model, record, method, nfe)


def write_all_episodes(
    path: Path,
    results: Mapping[tuple[str, str], Sequence[EpisodeResult]],
    model: Path,
    record: Record,
    method: str,
    nfe: int,
) -> None:
    """As ``write_row_episodes``, by evaluation and perturbation."""
    write_episodes(
        path,
        results,
        scale=record.scale,
        method=method,
        nfe=nfe,
        train_seed=record.train_seed,
        checkpoint=fingerprint(model),
        subtasks=record.load_task().subtasks,
    )


def write_metrics(
    path: Path, results: Sequence[EpisodeResult], record: Record, entry: Entry, repeats: int, **more: float
) -> dict[str, float]:
    """Write the ``metrics`` of ``entry``, and ``more``; return the mean scores."""
    write_text(path, json.dumps(metrics(results, record, entry, repeats) | more, indent=2) + "\n")
    return mean_scores(results)


def metrics(results: Sequence[EpisodeResult], record: Record, entry: Entry, repeats: int) -> dict[str, object]:
    """Describe a row beyond its episodes: data, training and sampling, and the mean scores."""
    return about(record, entry, n_seeds=len(results) // repeats, repeats=repeats) | mean_scores(results)


def about(record: Record, entry: Entry, **counts: int) -> dict[str, object]:
    """Describe the data, training and sampling of a row; ``counts``: of its episodes."""
    return {
        "scale": record.scale,
        "task": record.task,
        "evaluation": entry.evaluation,
        "method": entry.method,
        "nfe": entry.nfe,
        "dataset": record.data.dataset,
        "train_steps": record.train_steps,
        "train_seed": record.train_seed,
        **counts,
        "temperature": record.temperature,
        "spread_ratio": _rounded(record.figures.get("spread_ratio")),
        "best_of_k": _rounded(record.figures.get("best_of_k")),
        "precision": record.precision,
    }


def mean_scores(results: Sequence[EpisodeResult]) -> dict[str, float]:
    """Means over all episodes."""
    return {
        "max_score": round(float(np.mean([result.max_score for result in results])), 6),
        "final_score": round(float(np.mean([result.final_score for result in results])), 6),
        "success": round(float(np.mean([result.success for result in results])), 6),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
