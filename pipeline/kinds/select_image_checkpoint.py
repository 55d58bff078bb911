"""Choose the base model of images among i_cfm's checkpoints, and measure all of them.

The choice uses validation sampling seeds, never those of the tables. The checkpoints after the selected one are
continued flow matching, which fine-tuning is compared with.
"""

import json
import shutil
from pathlib import Path

from pipeline.settings.paths import ImageFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.training.image_checkpoint import load_image_model
from pipeline.training.image_judge import make_judge, summary
from pipeline.training.job import Asked, Job
from pipeline.training.journal import write_rows
from pipeline.training.problem import Workspace
from pipeline.utils.atomic import write_text


def job(asked: Asked, settings: ScaleSettings) -> Job:
    del settings
    files = ImageFiles(asked.scale, asked.task)
    return Job(
        f"select_image_checkpoint-{asked.scale}-{asked.task}",
        deps=[files.images, files.extractor, files.pretrained("i_cfm")],
        outs=[files.base, files.selection, files.history("i_cfm")],
        shipped="select_image_checkpoint",
    )


def work(asked: Asked, settings: ScaleSettings, here: Workspace, _label: str) -> None:
    files, of_task = ImageFiles(asked.scale, asked.task), settings.image_task(asked.task)
    rule, judge = of_task.select, make_judge(files, of_task)
    rows: list[dict[str, object]] = []
    scores: dict[Path, float] = {}
    steps: dict[Path, int] = {}
    for path in sorted(files.pretrained("i_cfm").glob("step-*.safetensors")):
        model, metadata = load_image_model(path)
        for nfe in dict.fromkeys([*settings.image_nfe, rule.nfe]):
            seeds, keep = rule.seeds(), here.resume / path.stem
            found = summary(judge.measure(model, f"euler-{nfe}", rule.n_samples, seeds, keep, path.stem))
            if nfe == rule.nfe and 0 < metadata.train_steps <= rule.latest:
                scores[path], steps[path] = found["distance"], metadata.train_steps
            here.run.log({f"distance_nfe{nfe}": found["distance"]}, metadata.train_steps)
            rows.append({"nfe": nfe, "step": metadata.train_steps, "updates": metadata.updates, **found})
    chosen = min(scores, key=scores.__getitem__)
    shutil.copyfile(chosen, files.base)
    report = {
        "rule": f"lowest distance at NFE {rule.nfe} over {rule.sampling_seeds} validation sampling seeds, "
        f"up to step {rule.latest}",
        "selected": chosen.name,
        "candidates": [
            {"checkpoint": path.name, "step": steps[path], "distance": score} for path, score in scores.items()
        ],
    }
    write_text(files.selection, json.dumps(report, indent=2) + "\n")
    constants = {
        "scale": asked.scale,
        "dataset": of_task.data.dataset,
        "method": "i_cfm",
        "train_seed": of_task.seed,
        "features": of_task.fid.features,
        "n_samples": rule.n_samples,
        "sampling_seeds": rule.sampling_seeds,
    }
    complete = [{**constants, **row, "selected": row["step"] == steps[chosen]} for row in rows]
    write_rows(files.history("i_cfm"), complete)
    here.run.artifact(files.selection)
