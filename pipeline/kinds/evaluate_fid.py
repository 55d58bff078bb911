"""Measure a row of Table 1: distances of generated images to the data, for every solver and sampling seed.

A fine-tuned model makes the images of its own number of evaluations; the model of the most evaluations also makes those
of more, and of the adaptive solver. ``untrained`` is i_cfm's net before its first step, a yardstick.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.evaluation.generation import Distance
from pipeline.evaluation.image_models import fixed_nfe
from pipeline.settings.images import SOLVER, ImageTaskSettings
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles, fingerprint
from pipeline.settings.schema import ScaleSettings
from pipeline.training.image_checkpoint import load_image_model
from pipeline.training.image_judge import Judge, make_judge
from pipeline.training.job import Asked, Job
from pipeline.training.problem import Workspace
from pipeline.utils.atomic import write_csv
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import use_threads


def job(asked: Asked, settings: ScaleSettings) -> Job:
    files = ImageFiles(asked.scale, asked.task)
    return Job(
        f"evaluate_fid-{asked.scale}-{asked.task}-{asked.method}",
        deps=[files.images, files.extractor, *_models(asked, settings).values()],
        outs=[files.distances(asked.method)],
        also={"method": asked.method},
    )


def work(asked: Asked, settings: ScaleSettings, here: Workspace, _label: str) -> None:
    files, of_task = ImageFiles(asked.scale, asked.task), settings.image_task(asked.task)
    models = _models(asked, settings)
    judge = make_judge(files, of_task, sample_metrics=of_task.fid.sample_metrics)
    rows = []
    for solver in of_task.fid.solvers:
        path, keep = models[tuned_for(solver, list(models))], here.resume / solver
        of_solver = distances(path, asked.method, solver, judge, of_task, of_task.fid.seeds(), keep)
        for row in of_solver:
            here.run.log({f"{solver}-distance": row["distance"], f"{solver}-nfe": row["nfe"]}, row["sampling_seed"])
        rows += of_solver
    write_csv(files.distances(asked.method), pd.DataFrame(rows))
    here.run.artifact(files.distances(asked.method))


def score_checkpoint(
    checkpoint: Path, solvers: Sequence[str], seeds: Sequence[int] | None, n_samples: int | None, out: Path
) -> list[str]:
    """Measure any checkpoint of images by ``solvers``; write the distances to ``out`` and return a line for each.

    Args:
        seeds: sampling seeds; None: those of the table. n_samples: images of each distance; None: as in params.yaml.

    Raises:
        UserError: no such checkpoint or solver, or no images or classifier of its scale.
    """
    _, metadata = load_image_model(checkpoint)
    files = ImageFiles(metadata.scale, metadata.task)
    settings = read_inputs("evaluate_fid", metadata.scale, metadata.task).settings.image_task(metadata.task)
    use_threads(settings.threads)
    fid = settings.fid.model_copy(update={"n_samples": n_samples or settings.fid.n_samples})
    settings = settings.model_copy(update={"fid": fid})
    judge = make_judge(files, settings, sample_metrics=fid.sample_metrics)
    rows = []
    for solver in solvers:
        if not re.fullmatch(SOLVER, solver):
            raise UserError(f"--solver: given {solver!r}, allowed: euler-1 to euler-1000, dopri5")
        rows += distances(checkpoint, metadata.method, solver, judge, settings, seeds or fid.seeds(), None)
    write_csv(out, pd.DataFrame(rows))
    return [f"{row['solver']} NFE {row['nfe']:g}, seed {row['sampling_seed']}: {row['distance']:.4f}" for row in rows]


def distances(
    path: Path,
    method: str,
    solver: str,
    judge: Judge,
    settings: ImageTaskSettings,
    seeds: Iterable[int],
    keep: Path | None,
) -> list[dict[str, Any]]:
    """Return the rows of one model file and solver, one for each sampling seed; none if the solver has too few steps.

    Args:
        keep: folder of finished distances, for a resume; None: nothing is kept.
    """
    model, metadata = load_image_model(path, settings.fid.tolerance)
    asked = fixed_nfe(solver)
    if asked is not None and asked < model.least_nfe:
        return []
    return [
        {
            "scale": metadata.scale,
            "dataset": settings.data.dataset,
            "method": method,
            "finetuned_nfe": metadata.nfe,
            "solver": solver if asked is None else model.fixed_solver,
            "nfe": found.nfe,
            "sampling_seed": seed,
            "n_samples": found.n_samples,
            "features": settings.fid.features,
            "distance": found.distance,
            "train_steps": metadata.train_steps,
            "train_seed": metadata.train_seed,
            "checkpoint": fingerprint(path),
            "precision": metadata.precision,
            **_metrics(found),
        }
        for seed, found in judge.measure(model, solver, settings.fid.n_samples, seeds, keep, method).items()
    ]


def tuned_for(solver: str, available: list[int]) -> int:
    """Return the fine-tuned model for ``solver``: that of the most evaluations not above the solver's."""
    asked = fixed_nfe(solver)
    fitting = [nfe for nfe in available if asked is None or nfe <= asked]
    return max(fitting, default=min(available))


def _models(asked: Asked, settings: ScaleSettings) -> dict[int, Path]:
    files, of_task = ImageFiles(asked.scale, asked.task), settings.image_task(asked.task)
    return files.models(asked.method, of_task, settings.image_nfe if asked.method == "ft_fm" else ())


def _metrics(found: Distance) -> dict[str, float]:
    if found.metrics is None:
        return {}
    metrics = found.metrics
    return {"kid": metrics.kid, "sample_precision": metrics.precision, "sample_recall": metrics.recall}
