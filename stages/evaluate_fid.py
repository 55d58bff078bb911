"""Stage ``evaluate_fid``: measure the distances of one row of Table 1 to the data, by every solver and sampling seed.

A solver samples the fine-tuned model of the largest NFE not above its own; the adaptive solver, that of the largest
NFE. ``untrained`` is i_cfm's net before its first step, for reference.

Test mode takes any checkpoint of images, and needs the images and classifier of its scale
(`dvc repro train_extractor@lab-cifar10`):

    python -m stages.evaluate_fid --checkpoint FILE --solver euler-4 --seeds 100000 --out distances.csv
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from pipeline.evaluation.generation import Distance
from pipeline.evaluation.image_models import fixed_nfe
from pipeline.orchestration.stage import program, stage
from pipeline.settings.images import SOLVER, ImageMethod, ImageTaskSettings
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles, fingerprint
from pipeline.training.image_checkpoint import load_image_model
from pipeline.training.image_judge import Judge, make_judge
from pipeline.utils.atomic import write_csv
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    as_stage = parser.add_argument_group("as a stage")
    as_stage.add_argument("--scale")
    as_stage.add_argument("--task")
    as_stage.add_argument("--method", choices=["untrained", *get_args(ImageMethod), "ft_fm", "resft_fm"])
    test = parser.add_argument_group("test mode")
    test.add_argument("--checkpoint", type=Path, help="an image model; turns test mode on")
    test.add_argument("--solver", action="append", help="euler-<steps> or dopri5; may be given several times")
    test.add_argument("--n-samples", type=int, help="images of each distance; by default as in params.yaml")
    test.add_argument("--seeds", type=int, nargs="+", help="sampling seeds; by default those of the table")
    test.add_argument("--out", type=Path, default=Path("distances.csv"))
    arguments = parser.parse_args()
    if arguments.checkpoint and arguments.solver:
        test_mode(arguments)
    elif arguments.scale and arguments.task and arguments.method:
        as_dvc_stage(arguments.scale, arguments.task, arguments.method)
    else:
        parser.error("give --checkpoint and --solver (test mode), or --scale, --task and --method (as a stage)")


def as_dvc_stage(scale: str, task: str, method: str) -> None:
    files = ImageFiles(scale, task)
    kind = "evaluate_untrained" if method == "untrained" else "evaluate_fid"
    inputs = read_inputs(kind, scale, task)
    settings = inputs.settings.image_task(task)
    use_threads(settings.threads)

    models = files.models(method, settings, inputs.settings.image_nfe if method == "ft_fm" else ())
    with stage(
        inputs,
        f"evaluate_fid-{scale}-{task}-{method}",
        also={"method": method},
        deps=[files.images, files.extractor, *models.values()],
        outs=[files.distances(method)],
    ) as here:
        judge = make_judge(files, settings, sample_metrics=settings.fid.sample_metrics)
        rows = []
        for solver in settings.fid.solvers:
            path = models[tuned_for(solver, list(models))]
            of_solver = distances(path, method, solver, judge, settings, settings.fid.seeds(), here.resume / solver)
            for row in of_solver:
                here.run.log({f"{solver}-distance": row["distance"], f"{solver}-nfe": row["nfe"]}, row["sampling_seed"])
            rows += of_solver
        write_csv(files.distances(method), pd.DataFrame(rows))
        here.run.artifact(files.distances(method))


def test_mode(arguments: argparse.Namespace) -> None:
    _, metadata = load_image_model(arguments.checkpoint)
    files = ImageFiles(metadata.scale, metadata.task)
    settings = read_inputs("evaluate_fid", metadata.scale, metadata.task).settings.image_task(metadata.task)
    use_threads(settings.threads)
    n_samples = arguments.n_samples or settings.fid.n_samples
    settings = settings.model_copy(update={"fid": settings.fid.model_copy(update={"n_samples": n_samples})})
    judge = make_judge(files, settings, sample_metrics=settings.fid.sample_metrics)
    seeds = arguments.seeds or settings.fid.seeds()
    rows = []
    for solver in arguments.solver:
        if not re.fullmatch(SOLVER, solver):
            raise UserError(f"--solver: given {solver!r}, allowed: euler-1 to euler-1000, dopri5")
        rows += distances(arguments.checkpoint, metadata.method, solver, judge, settings, seeds, None)
    write_csv(arguments.out, pd.DataFrame(rows))
    for row in rows:
        print(f"{row['solver']} NFE {row['nfe']:g}, seed {row['sampling_seed']}: {row['distance']:.4f}")


def distances(
    path: Path,
    method: str,
    solver: str,
    judge: Judge,
    settings: ImageTaskSettings,
    seeds: Iterable[int],
    keep: Path | None,
) -> list[dict[str, Any]]:
    """Return a row for each sampling seed of one model file and solver; none if the solver has too few steps."""
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


def _metrics(found: Distance) -> dict[str, float]:
    if found.metrics is None:
        return {}
    metrics = found.metrics
    return {"kid": metrics.kid, "sample_precision": metrics.precision, "sample_recall": metrics.recall}


def tuned_for(solver: str, available: list[int]) -> int:
    """Return the NFE of the fine-tuned model that ``solver`` samples: the largest not above its own, else the least."""
    asked = fixed_nfe(solver)
    fitting = [nfe for nfe in available if asked is None or nfe <= asked]
    return max(fitting, default=min(available))


if __name__ == "__main__":
    program(main)
