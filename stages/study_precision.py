"""Stage ``study_precision``: models rolled out with one thing changed at a time, to see where precision is lost."""

import argparse
from pathlib import Path

import torch

from pipeline import config
from pipeline.atomic import write_text
from pipeline.evaluation.diversity import measure_diversity
from pipeline.evaluation.precision import Varied, run_varied, variations
from pipeline.layout import ScaleReports, TaskFiles
from pipeline.reporting.precision import precision_markdown, precision_panels, precision_rows, precision_table
from pipeline.reporting.tables import write_table
from pipeline.stage import program, stage
from pipeline.training.checkpoint import load_policy
from pipeline.training.data import PreparedData


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--models", required=True, type=Path, nargs="+", help="files of fm and ft_fm")
    arguments = parser.parse_args()
    scale, task, models = arguments.scale, arguments.task, arguments.models
    settings = config.load().block(scale).task(task)
    evaluation, precision = settings.select.evaluation, settings.studied().precision
    prepared = TaskFiles(scale, task).prepared
    torch.set_num_threads(settings.threads)

    table_path, report_path, picture = (
        ScaleReports(scale).folder / f"precision.{kind}" for kind in ("csv", "md", "png")
    )
    with stage(
        "stages/study_precision.py",
        f"study_precision-{scale}-{task}",
        params=settings.model_dump(include={"threads", "data", "evaluation"})
        | {"evaluation_name": evaluation, "precision": precision.model_dump()},
        deps=[prepared, *models],
        outs=[table_path, report_path, picture, picture.with_suffix(".svg")],
    ) as here:
        data = PreparedData.load(prepared)
        rows = []
        for model in models:
            policy, record = load_policy(model)
            made_for = variations(precision, record.nfe, policy.chunk, flow=record.method == "fm")
            varied = {variation: Varied(policy, variation) for variation in made_for}
            samples = {
                variation: measure_diversity(
                    acting, data.held_out_condition, data.held_out_action, variation.nfe, seed=record.train_seed
                )
                for variation, acting in varied.items()
            }
            outcomes = {
                variation: run_varied(
                    acting,
                    task,
                    evaluation,
                    precision.seeds,
                    settings.evaluation,
                    here.resume / f"{model.stem}-{variation.change or 'as made'}.jsonl",
                )
                for variation, acting in varied.items()
            }
            rows += precision_rows(record, evaluation, outcomes, samples)
        table = precision_table(rows)
        write_table(table_path, table)
        precision_panels(table, picture)
        write_text(report_path, precision_markdown(table, picture.name))
        here.run.table(table_path, "precision")
        here.run.artifact(report_path)
        here.run.artifact(picture)


if __name__ == "__main__":
    program(main)
