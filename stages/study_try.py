"""Try other settings for a row of the coupling study, on validation seeds only, and note how they did.

Not part of a DAG: it is how the settings in params.yaml were chosen. For example

    python -m stages.study_try --scale lab --task pusht --row nearest --nfe 8 --set lr=3e-4 candidates=8

from the base model of params.yaml's seed, or of another --train-seed that a base model was made for.
Each checkpoint is a line in reports/<scale>/coupling_study_tried.csv.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline.orchestration.stage import program, stage
from pipeline.reporting.study import ROW_NAMES
from pipeline.reporting.tables import write_table
from pipeline.settings import schema
from pipeline.settings.inputs import inputs_of
from pipeline.settings.messages import line
from pipeline.settings.paths import ScaleReports, TaskFiles, fingerprint
from pipeline.settings.schema import FinetuneRecipe, StudyRecipe, StudySettings, TaskSettings
from pipeline.training.data import PreparedData
from pipeline.training.guard import Guard
from pipeline.training.study import choose, load_base, load_row, make_training, train_row
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import use_threads

COLUMNS = [
    "scale",
    "dataset",
    "coupling",
    "nfe",
    "train_seed",
    "base",
    "changed",
    "train_steps",
    "n_seeds",
    "max_score",
    "success",
    "spread_ratio",
    "precision",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--row", required=True, choices=[row for row in ROW_NAMES if row != "fm"])
    parser.add_argument("--nfe", required=True, type=int)
    parser.add_argument("--train-seed", type=int, help="of the base model; without it, seed in params.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of study or finetune.nfe1")
    parser.add_argument("--seeds", type=int, default=200, help="validation seeds")
    arguments = parser.parse_args()
    scale, task, row, nfe = arguments.scale, arguments.task, arguments.row, arguments.nfe
    of_task = schema.load().block(scale).task(task)
    of_task.studied().recipe(row, nfe, of_task.finetune["nfe1"])  # refuses an --nfe without a recipe
    settings = changed(of_task.replica(arguments.train_seed), arguments.set, nfe)
    study, files, seed = settings.studied(), TaskFiles(scale, task), settings.seed
    base_file = files.study_base(seed)
    base = load_base(base_file, scale, task, seed)
    if not 1 <= arguments.seeds <= 100_000:
        raise UserError(f"--seeds: given {arguments.seeds}, allowed: 1 to 100000")
    use_threads(settings.threads)

    out = ScaleReports(scale).folder / "coupling_study_tried.csv"
    label = f"try-{scale}-{task}-{row}-{nfe}-seed{seed}"
    read = {"task", "custom", "seed", "threads", "pretrain", "select", "evaluation", "study", "finetune"}
    params = settings.model_dump(include=read)
    inputs = inputs_of("stages/study_try.py", params)
    with stage(inputs, label, deps=[base_file, files.prepared], outs=[out]) as here:
        data = PreparedData.load(files.prepared)
        guard = Guard(base[0], data, seed)
        training = make_training(row, [nfe], base, data, here.settled(settings), study, here.resume / "pairs.pt")
        here.run.tag("precision", training.optimization.precision)
        models = train_row(training, row, base, study.checkpoints, here.resume, here.run, label)
        tried = choose(models, row, nfe, settings, arguments.seeds, here.resume)
        rows = []
        for model, candidate in zip(models, tried.candidates, strict=True):
            spread = guard.read(load_row(model, row)[0], nfe).spread_ratio
            scores = [round(value, 4) for value in (*candidate.figures.values(), spread)]
            about = (
                scale,
                settings.data.dataset,
                row,
                nfe,
                seed,
                fingerprint(base_file),
                " ".join(arguments.set),
            )
            steps, precision = candidate.train_steps, training.optimization.precision
            rows.append((*about, steps, arguments.seeds, *scores, precision))
        append(out, rows)
        for done in rows:
            print(", ".join(f"{name} {value}" for name, value in zip(COLUMNS, done, strict=True) if value != ""))


def changed(settings: TaskSettings, assignments: list[str], nfe: int) -> TaskSettings:
    """``settings`` with keys of the study, or else of the recipe that it follows, set anew.

    Raises:
        UserError: no such key, or a value that is not allowed.
    """
    raw: dict[str, Any] = settings.model_dump()
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        value = YAML(typ="safe").load(text)
        if key in StudyRecipe.model_fields:
            raw["study"]["recipes"][f"nfe{nfe}"][key] = value
        elif key in StudySettings.model_fields:
            raw["study"][key] = value
        elif key in FinetuneRecipe.model_fields:
            raw["finetune"]["nfe1"][key] = value
        else:
            allowed = ", ".join(dict.fromkeys([*StudySettings.model_fields, *FinetuneRecipe.model_fields]))
            raise UserError(f"--set: given {assignment!r}, allowed: KEY=VALUE with one of {allowed}")
    try:
        return TaskSettings.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"--set: {line(error, raw, lambda _keys: ())}") from None


def append(path: Path, rows: list[tuple[object, ...]]) -> None:
    """Add ``rows`` to the CSV file, whole or not at all."""
    table = pd.DataFrame(rows, columns=COLUMNS).astype(str)
    if path.exists():  # as text: what stands there stays as it is written; older lines do not say their precision
        table = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False), table]).fillna("")
    write_table(path, table)


if __name__ == "__main__":
    program(main)
