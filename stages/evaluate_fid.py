"""Stage ``evaluate_fid``: the distances of one row of Table 1 to the data, by every solver and sampling seed.

A fine-tuned model makes the images of its own number of evaluations; that of the most also those of more, and of the
adaptive solver. ``untrained`` is i_cfm's net before its first step, a yardstick.
"""

import argparse
from typing import get_args

import pandas as pd

from pipeline.evaluation.image_models import fixed_nfe
from pipeline.orchestration.stage import program, stage
from pipeline.reporting.tables import write_table
from pipeline.settings.images import ImageMethod
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles, fingerprint
from pipeline.training.image_checkpoint import load_image_model
from pipeline.training.image_judge import make_judge
from pipeline.utils.hardware import use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--method", required=True, choices=["untrained", *get_args(ImageMethod), "ft_fm", "resft_fm"])
    arguments = parser.parse_args()
    method = arguments.method
    files = ImageFiles(arguments.scale, arguments.task)
    kind = "evaluate_untrained" if method == "untrained" else "evaluate_fid"
    inputs = read_inputs(kind, arguments.scale, arguments.task)
    settings = inputs.settings.image_task(arguments.task)
    use_threads(settings.threads)

    models = files.models(method, settings, inputs.settings.image_nfe if method == "ft_fm" else ())
    label = f"evaluate_fid-{arguments.scale}-{arguments.task}-{method}"
    with stage(
        inputs,
        label,
        also={"method": method},
        deps=[files.images, files.extractor, *models.values()],
        outs=[files.distances(method)],
    ) as here:
        judge = make_judge(files, settings)
        fid = settings.fid
        rows = []
        for solver in fid.solvers:
            tuned = tuned_for(solver, list(models))
            model, record = load_image_model(models[tuned], fid.tolerance)
            asked = fixed_nfe(solver)
            if asked is not None and asked < model.least_nfe:
                continue
            keep = here.resume / solver
            for seed, found in judge.measure(model, solver, fid.n_samples, fid.seeds(), keep, method).items():
                rows.append(
                    {
                        "scale": arguments.scale,
                        "dataset": settings.data.dataset,
                        "method": method,
                        "finetuned_nfe": record.nfe,
                        "solver": solver if asked is None else model.fixed_solver,
                        "nfe": found.nfe,
                        "sampling_seed": seed,
                        "n_samples": found.n_samples,
                        "features": fid.features,
                        "distance": found.distance,
                        "train_steps": record.train_steps,
                        "train_seed": record.train_seed,
                        "checkpoint": fingerprint(models[tuned]),
                        "precision": record.precision,
                    }
                )
                here.run.log({f"{solver}-distance": found.distance, f"{solver}-nfe": found.nfe}, seed)
        write_table(files.distances(method), pd.DataFrame(rows))
        here.run.artifact(files.distances(method))


def tuned_for(solver: str, available: list[int]) -> int:
    """Which of the fine-tuned models makes the images of ``solver``: that of the most evaluations not above it."""
    asked = fixed_nfe(solver)
    fitting = [nfe for nfe in available if asked is None or nfe <= asked]
    return max(fitting, default=min(available))


if __name__ == "__main__":
    program(main)
