"""Stage ``select_image_checkpoint``: choose the base model among i_cfm's checkpoints, and measure all of them.

The choice is by distance on noise of its own, never that of the tables. The checkpoints after the selected one are
flow matching continued, which fine-tuning is compared with.
"""

import argparse
import csv
import io
import json
import shutil
from pathlib import Path

from pipeline.orchestration.stage import program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles
from pipeline.training.image_checkpoint import load_image_model
from pipeline.training.image_judge import make_judge, summary
from pipeline.utils.atomic import write_text
from pipeline.utils.hardware import use_threads
from pipeline.utils.shipped import Shipment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    files = ImageFiles(arguments.scale, arguments.task)
    inputs = read_inputs("select_image_checkpoint", arguments.scale, arguments.task)
    settings = inputs.settings.image_task(arguments.task)
    use_threads(settings.threads)
    rule = settings.select

    label = f"select_image_checkpoint-{arguments.scale}-{arguments.task}"
    deps = [files.images, files.extractor, files.pretrained("i_cfm")]
    outs = [files.base, files.selection, files.history("i_cfm")]
    shipment = Shipment(arguments.scale, arguments.task, "select_image_checkpoint", inputs.params, deps, outs)
    with stage(inputs, label, deps=deps, outs=outs) as here:
        if shipment.unpack():
            return
        judge = make_judge(files, settings)
        rows: list[dict[str, object]] = []
        scores: dict[Path, float] = {}
        steps: dict[Path, int] = {}
        for path in sorted(files.pretrained("i_cfm").glob("step-*.safetensors")):
            model, record = load_image_model(path)
            for nfe in dict.fromkeys([*inputs.settings.image_nfe, rule.nfe]):
                seeds, keep = rule.seeds(), here.resume / path.stem
                found = summary(judge.measure(model, f"euler-{nfe}", rule.n_samples, seeds, keep, path.stem))
                if nfe == rule.nfe and 0 < record.train_steps <= rule.latest:
                    scores[path], steps[path] = found["distance"], record.train_steps
                here.run.log({f"distance_nfe{nfe}": found["distance"]}, record.train_steps)
                rows.append({"nfe": nfe, "step": record.train_steps, "updates": record.updates, **found})
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
            "scale": arguments.scale,
            "dataset": settings.data.dataset,
            "method": "i_cfm",
            "train_seed": settings.seed,
            "features": settings.fid.features,
            "n_samples": rule.n_samples,
            "sampling_seeds": rule.sampling_seeds,
        }
        text = io.StringIO()
        complete = [{**constants, **row, "selected": row["step"] == steps[chosen]} for row in rows]
        writer = csv.DictWriter(text, fieldnames=list(complete[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(complete)
        write_text(files.history("i_cfm"), text.getvalue())
        here.run.artifact(files.selection)
        shipment.note()


if __name__ == "__main__":
    program(main)
