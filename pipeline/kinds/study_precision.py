"""Roll models out with one setting changed at a time, to find where precision is lost."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.evaluation.diversity import measure_diversity
from pipeline.evaluation.precision import Varied, run_varied, variations
from pipeline.evaluation.protocol import find_env_factory
from pipeline.reporting.precision import precision_markdown, precision_panels, precision_rows, precision_table
from pipeline.reporting.tables import evaluation_titles
from pipeline.settings.paths import ScaleReports, TaskFiles, fingerprint
from pipeline.settings.schema import ScaleSettings, TaskSettings
from pipeline.training.checkpoint import load_policy, read_metadata, require_architecture
from pipeline.training.data import PreparedData
from pipeline.training.job import Asked, Job
from pipeline.training.problem import Workspace
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.errors import UserError


def job(asked: Asked, settings: ScaleSettings) -> Job:
    require_models(asked.models, asked.scale, asked.task, settings.task(asked.task))
    return Job(
        f"study_precision-{asked.scale}-{asked.task}",
        deps=[TaskFiles(asked.scale, asked.task).prepared, *asked.models],
        outs=ScaleReports(asked.scale).pictured("precision"),
    )


def work(asked: Asked, all_settings: ScaleSettings, here: Workspace, _label: str) -> None:
    settings = all_settings.task(asked.task)
    evaluation, precision = settings.select.evaluation, settings.studied().precision
    data = PreparedData.load(TaskFiles(asked.scale, asked.task).prepared)
    env_factory = find_env_factory(settings.load_task(), asked.task, evaluation, settings.evaluation)
    rows = []
    for model in asked.models:
        policy, metadata = load_policy(model)
        policy.to("cuda" if torch.cuda.is_available() else "cpu")
        made_for = variations(precision, metadata.nfe, policy.n_action_steps, flow=metadata.method == "fm")
        varied = {variation: Varied(policy, variation) for variation in made_for}
        held_out = data.held_out_condition.to(policy.device), data.held_out_action.to(policy.device)
        samples = {
            variation: measure_diversity(acting, *held_out, variation.nfe, seed=metadata.train_seed)
            for variation, acting in varied.items()
        }
        outcomes = {
            variation: run_varied(
                acting,
                env_factory,
                precision.seeds,
                settings.evaluation,
                here.resume / f"{fingerprint(model)}-{variation.change or 'as made'}.jsonl",
            )
            for variation, acting in varied.items()
        }
        rows += precision_rows(metadata, fingerprint(model), evaluation, outcomes, samples)
    table_path, report_path, picture, _ = ScaleReports(asked.scale).pictured("precision")
    table, title = precision_table(rows), evaluation_titles({asked.task: settings})[evaluation]
    write_csv(table_path, table)
    precision_panels(table, picture)
    write_text(report_path, precision_markdown(table, picture.name, title))
    here.run.table(table_path, "precision")
    here.run.artifact(report_path)
    here.run.artifact(picture)


def require_models(models: Sequence[Path], scale: str, task: str, settings: TaskSettings) -> None:
    """Refuse models that one table cannot hold.

    Raises:
        UserError: one was made for another scale, task, training seed or architecture, or by a method other than fm and
            ft_fm for a number of evaluations; or two are of the same method and number.
    """
    seen: dict[tuple[str, int], Path] = {}
    for path in models:
        metadata = read_metadata(path)
        require_architecture(path, metadata, settings.data, settings.net)
        for name, given, allowed in (
            ("scale", metadata.scale, scale),
            ("task", metadata.task, task),
            ("training seed", metadata.train_seed, settings.seed),
        ):
            if given != allowed:
                raise UserError(f"--models: {path}: its {name} is {given}, allowed: {allowed}")
        if metadata.method not in ("fm", "ft_fm") or metadata.nfe < 1:
            raise UserError(
                f"--models: {path}: a model of {metadata.method} for {metadata.nfe} evaluations, allowed: fm and ft_fm "
                "that `finetune` made for 1 or more"
            )
        key = (metadata.method, metadata.nfe)
        if key in seen:
            raise UserError(
                f"--models: {path}: {metadata.method} at NFE {metadata.nfe}, as {seen[key]}; allowed: one each"
            )
        seen[key] = path
