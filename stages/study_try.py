"""Try other settings for a method of the one-step study, on validation seeds only, and note how they did.

Not part of a DAG: it is how the settings in params.yaml were chosen. For example

    python -m stages.study_try --scale lab --task pusht --method ft_fm --nfe 1 --set reflow_temperature=0.5 budget=2000

from the base model of params.yaml's seed, of another --train-seed that one was made for, or of another file (--base).
Each checkpoint at each temperature is a line in reports/<scale>/coupling_study_tried.csv.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline.orchestration.stage import program, stage
from pipeline.settings import schema
from pipeline.settings.inputs import inputs_of
from pipeline.settings.messages import line
from pipeline.settings.one_step import METHODS, OneStepRecipe, OneStepSettings
from pipeline.settings.paths import ScaleReports, TaskFiles, fingerprint
from pipeline.settings.schema import FinetuneRecipe, TaskSettings
from pipeline.training.checkpoint import load_policy
from pipeline.training.data import PreparedData
from pipeline.training.guard import Guard
from pipeline.training.one_step import choose, load_method, make_training
from pipeline.training.study import load_base, train_row
from pipeline.utils.atomic import write_csv
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
    "temperature",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--method", required=True, choices=list(METHODS))
    parser.add_argument("--nfe", required=True, type=int)
    parser.add_argument("--train-seed", type=int, help="of the base model; without it, seed in params.yaml")
    parser.add_argument("--base", type=Path, help="a model file to start from, in place of the base model")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of one_step or finetune.nfe1"
    )
    arguments = parser.parse_args()
    scale, task, method, nfe = arguments.scale, arguments.task, arguments.method, arguments.nfe
    if nfe not in METHODS[method].nfe:
        raise UserError(f"--nfe: given {nfe}, allowed for {method}: {', '.join(map(str, METHODS[method].nfe))}")
    of_task = schema.load().block(scale).task(task)
    settings = changed(of_task.replica(arguments.train_seed), arguments.set, method, nfe)
    study, files, seed = settings.one_step, TaskFiles(scale, task), settings.seed
    base_file = arguments.base or files.study_base(seed)
    base = load_policy(base_file) if arguments.base else load_base(base_file, scale, task, seed)
    use_threads(settings.threads)

    out = ScaleReports(scale).folder / "coupling_study_tried.csv"
    read = {"task", "custom", "seed", "threads", "pretrain", "select", "evaluation", "one_step", "finetune"}
    inputs = inputs_of("stages/study_try.py", settings.model_dump(include=read) | {"base": fingerprint(base_file)})
    label = f"try-{scale}-{task}-{method}-{nfe}-seed{seed}"
    with stage(inputs, label, deps=[base_file, files.prepared], outs=[out]) as here:
        data = PreparedData.load(files.prepared)
        guard = Guard(base[0], data, seed)
        models, precision = [base_file], base[1].precision
        if method != "fm":
            training = make_training(method, nfe, base, data, here.settled(settings), here.resume / "pairs.pt")
            precision = training.optimization.precision
            here.run.tag("precision", precision)
            models = train_row(training, method, base, study.checkpoints, here.resume, here.run, label)
        rows = []
        for choice in choose(models, method, nfe, settings, here.resume, every=True):
            policy, record = load_method(choice.model, method, nfe, study)
            policy.temperature = choice.temperature
            spread = guard.read(policy, nfe).spread_ratio
            scores = [round(value, 4) for value in (choice.max_score, choice.success, spread)]
            about = (scale, settings.data.dataset, method, nfe, seed, fingerprint(base_file), " ".join(arguments.set))
            rows.append((*about, record.train_steps, study.seeds, *scores, precision, f"{choice.temperature:g}"))
        append(out, rows)
        for done in rows:
            print(", ".join(f"{name} {value}" for name, value in zip(COLUMNS, done, strict=True) if value != ""))


def changed(settings: TaskSettings, assignments: list[str], method: str, nfe: int) -> TaskSettings:
    """``settings`` with keys of a method's recipe, of the study, or of the recipe that ft_fm follows, set anew.

    Raises:
        UserError: no such key, or a value that is not allowed.
    """
    raw: dict[str, Any] = settings.model_dump()
    study = raw["one_step"]
    own, like = study.get(method, {}), {}
    if method == "ft_fm":
        own, like = study["recipes"].setdefault(f"nfe{nfe}", {}), raw["finetune"]["nfe1"]
    known = [*(OneStepRecipe.model_fields if method == "ft_fm" else own), *OneStepSettings.model_fields]
    known += FinetuneRecipe.model_fields if like else []
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        if key not in known:
            allowed = ", ".join(dict.fromkeys(known))
            raise UserError(f"--set: given {assignment!r}, allowed: KEY=VALUE with one of {allowed}")
        first = own if key in own else study if key in study else like
        first[key] = YAML(typ="safe").load(text)
    try:
        return TaskSettings.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"--set: {line(error, raw, lambda _keys: ())}") from None


def append(path: Path, rows: list[tuple[object, ...]]) -> None:
    """Add ``rows`` to the CSV file, whole or not at all."""
    table = pd.DataFrame(rows, columns=COLUMNS).astype(str)
    if path.exists():  # as text: what stands there stays as it is written; older lines lack the last columns
        table = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False), table]).fillna("")
    write_csv(path, table)


if __name__ == "__main__":
    program(main)
