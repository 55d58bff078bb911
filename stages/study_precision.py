"""Stage ``study_precision``: roll models out with one change at a time, to find where precision is lost."""

import argparse
from pathlib import Path

import torch

from pipeline.evaluation.diversity import measure_diversity
from pipeline.evaluation.precision import Varied, run_varied, variations
from pipeline.evaluation.protocol import find_env_factory
from pipeline.orchestration.stage import program, stage
from pipeline.reporting.precision import precision_markdown, precision_panels, precision_rows, precision_table
from pipeline.reporting.tables import evaluation_titles
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ScaleReports, TaskFiles, fingerprint
from pipeline.settings.schema import TaskSettings
from pipeline.training.checkpoint import load_policy, read_metadata, require_architecture
from pipeline.training.data import PreparedData
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--models", required=True, type=Path, nargs="+", help="files of fm and ft_fm")
    arguments = parser.parse_args()
    scale, task, models = arguments.scale, arguments.task, arguments.models
    inputs = read_inputs("study_precision", scale, task)
    settings = inputs.settings.task(task)
    evaluation, precision = settings.select.evaluation, settings.studied().precision
    prepared = TaskFiles(scale, task).prepared
    require_models(models, scale, task, settings)
    use_threads(settings.threads)

    reports = ScaleReports(scale).folder
    table_path, report_path, picture = (reports / f"precision.{kind}" for kind in ("csv", "md", "png"))
    with stage(
        inputs,
        f"study_precision-{scale}-{task}",
        deps=[prepared, *models],
        outs=[table_path, report_path, picture, picture.with_suffix(".svg")],
    ) as here:
        data = PreparedData.load(prepared)
        simulated = find_env_factory(settings.load_task(), task, evaluation, settings.evaluation)
        rows = []
        for model in models:
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
                    simulated,
                    precision.seeds,
                    settings.evaluation,
                    here.resume / f"{fingerprint(model)}-{variation.change or 'as made'}.jsonl",
                )
                for variation, acting in varied.items()
            }
            rows += precision_rows(metadata, fingerprint(model), evaluation, outcomes, samples)
        table = precision_table(rows)
        write_csv(table_path, table)
        precision_panels(table, picture)
        write_text(
            report_path, precision_markdown(table, picture.name, evaluation_titles({task: settings})[evaluation])
        )
        here.run.table(table_path, "precision")
        here.run.artifact(report_path)
        here.run.artifact(picture)


def require_models(models: list[Path], scale: str, task: str, settings: TaskSettings) -> None:
    """Check that one table can hold the models.

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


if __name__ == "__main__":
    program(main)
