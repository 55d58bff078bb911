"""What the rollouts of one row leave behind: its episodes, and the metrics beside them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.atomic import write_text
from pipeline.evaluation.rollouts import EpisodeResult, write_episodes
from pipeline.layout import Entry, fingerprint
from pipeline.training.checkpoint import Record


def write_row_episodes(path: Path, results: Sequence[EpisodeResult], model: Path, record: Record, entry: Entry) -> None:
    """Write the episodes of ``entry``, made by the model file ``model`` of ``record``."""
    write_episodes(
        path,
        results,
        scale=record.scale,
        evaluation=entry.evaluation,
        method=entry.method,
        nfe=entry.nfe,
        train_seed=record.train_seed,
        checkpoint=fingerprint(model),
    )


def write_metrics(
    path: Path, results: Sequence[EpisodeResult], record: Record, entry: Entry, repeats: int, **more: float
) -> dict[str, float]:
    """Write what a table needs to know of a row and its episodes cannot tell, and ``more``; return the mean scores."""
    scores = mean_scores(results)
    about: dict[str, object] = {
        "scale": record.scale,
        "task": record.task,
        "evaluation": entry.evaluation,
        "method": entry.method,
        "nfe": entry.nfe,
        "dataset": record.data.dataset,
        "train_steps": record.train_steps,
        "train_seed": record.train_seed,
        "n_seeds": len(results) // repeats,
        "repeats": repeats,
        "spread_ratio": _rounded(record.figures.get("spread_ratio")),
        "best_of_k": _rounded(record.figures.get("best_of_k")),
    }
    write_text(path, json.dumps(about | scores | more, indent=2) + "\n")
    return scores


def mean_scores(results: Sequence[EpisodeResult]) -> dict[str, float]:
    """Means over all episodes."""
    return {
        "max_score": round(float(np.mean([result.max_score for result in results])), 6),
        "final_score": round(float(np.mean([result.final_score for result in results])), 6),
        "success": round(float(np.mean([result.success for result in results])), 6),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
