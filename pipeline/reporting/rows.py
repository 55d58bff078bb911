"""Write the results of one row's rollouts: its episodes, and the metrics beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.evaluation.rollouts import UNPERTURBED, EpisodeResult, write_episodes
from pipeline.settings.paths import Entry, fingerprint
from pipeline.training.checkpoint import CheckpointMetadata
from pipeline.utils.atomic import write_text


def write_row_episodes(
    path: Path,
    results: Mapping[str, Sequence[EpisodeResult]],
    model: Path,
    metadata: CheckpointMetadata,
    method: str,
    nfe: int,
) -> None:
    """Write the episodes of a row by evaluation, made by the model file ``model`` of ``metadata``."""
    undisturbed = {(evaluation, UNPERTURBED): episodes for evaluation, episodes in results.items()}
    write_all_episodes(path, undisturbed, model, metadata, method, nfe)


def write_all_episodes(
    path: Path,
    results: Mapping[tuple[str, str], Sequence[EpisodeResult]],
    model: Path,
    metadata: CheckpointMetadata,
    method: str,
    nfe: int,
) -> None:
    """As ``write_row_episodes``, by evaluation and perturbation."""
    write_episodes(
        path,
        results,
        scale=metadata.scale,
        method=method,
        nfe=nfe,
        train_seed=metadata.train_seed,
        checkpoint=fingerprint(model),
        subtasks=metadata.load_task().subtasks,
    )


def write_metrics(
    path: Path,
    results: Sequence[EpisodeResult],
    metadata: CheckpointMetadata,
    entry: Entry,
    repeats: int,
    **more: float,
) -> dict[str, float]:
    """Write the ``metrics`` of ``entry``, and ``more``; return the mean scores."""
    write_text(path, json.dumps(metrics(results, metadata, entry, repeats) | more, indent=2) + "\n")
    return mean_scores(results)


def metrics(
    results: Sequence[EpisodeResult], metadata: CheckpointMetadata, entry: Entry, repeats: int
) -> dict[str, object]:
    """Describe a row beyond its episodes: data, training and sampling, and the mean scores."""
    return about(metadata, entry, n_seeds=len(results) // repeats, repeats=repeats) | mean_scores(results)


def about(metadata: CheckpointMetadata, entry: Entry, **counts: int) -> dict[str, object]:
    """Describe the data, training and sampling of a row; ``counts``: of its episodes."""
    return {
        "scale": metadata.scale,
        "task": metadata.task,
        "evaluation": entry.evaluation,
        "method": entry.method,
        "nfe": entry.nfe,
        "dataset": metadata.data.dataset,
        "train_steps": metadata.train_steps,
        "train_seed": metadata.train_seed,
        **counts,
        "temperature": metadata.temperature,
        "spread_ratio": _rounded(metadata.metrics.get("spread_ratio")),
        "best_of_k": _rounded(metadata.metrics.get("best_of_k")),
        "precision": metadata.precision,
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
