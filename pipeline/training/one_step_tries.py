"""Try other settings of a method of the one-step study on validation seeds, and record the scores."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline.settings.messages import line
from pipeline.settings.one_step import OneStepRecipe, OneStepSettings
from pipeline.settings.paths import fingerprint
from pipeline.settings.schema import FinetuneRecipe, TaskSettings
from pipeline.training.data import PreparedData
from pipeline.training.diversity_monitor import DiversityMonitor
from pipeline.training.journal import write_rows
from pipeline.training.one_step import OneStepCell
from pipeline.training.problem import Workspace
from pipeline.utils.errors import UserError

READ = {"task", "custom", "seed", "threads", "pretrain", "select", "evaluation", "one_step", "finetune"}
"""Keys of a task that a try depends on."""


def changed(settings: TaskSettings, assignments: Sequence[str], method: str, nfe: int) -> TaskSettings:
    """Return ``settings`` with changed keys of a method's recipe, of the study, or of the recipe that ft_fm follows.

    Args:
        assignments: KEY=VALUE each, the value in YAML.

    Raises:
        UserError: a key is unknown, or its value is not allowed.
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


def tried(cell: OneStepCell, prepared: Path, here: Workspace, title: str, changes: str) -> list[dict[str, object]]:
    """Train ``cell``; return a row for each checkpoint at each temperature, at its one number of evaluations.

    Args:
        prepared: the task's data. title: the title of the run. changes: the changes of settings, as text.
    """
    data, settings, (nfe,) = PreparedData.load(prepared), cell.settings, cell.numbers
    monitor, models = DiversityMonitor(cell.base[0], data, settings.seed), [cell.base_file]
    precision = cell.base[1].precision
    if cell.method != "fm":
        training = cell.training(data, here.settled(settings), here.resume / "pairs.pt")
        precision = training.optimization.precision
        models = cell.trained(training, here, title)
    rows: list[dict[str, object]] = []
    for choice in cell.choices(models, nfe, here.resume, every=True):
        policy, made = cell.load(choice.model, nfe)
        policy.temperature = choice.temperature
        rows.append(
            {
                "dataset": settings.data.dataset,
                "coupling": cell.method,
                "nfe": nfe,
                "train_seed": settings.seed,
                "base": fingerprint(cell.base_file),
                "changed": changes,
                "train_steps": made.train_steps,
                "n_seeds": settings.one_step.seeds,
                "max_score": round(choice.max_score, 4),
                "success": round(choice.success, 4),
                "spread_ratio": round(monitor.measure(policy, nfe).spread_ratio, 4),
                "precision": precision,
                "temperature": f"{choice.temperature:g}",
            }
        )
    return rows


def append(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Append ``rows`` to the CSV file atomically; older rows keep their text."""
    before: list[Mapping[str, object]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            before = list(csv.DictReader(file))
    columns = dict.fromkeys(column for row in [*before[:1], *rows[:1]] for column in row)  # older rows lack the last
    write_rows(path, [{column: row.get(column, "") for column in columns} for row in [*before, *rows]])
