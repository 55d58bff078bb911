"""Stage ``tabulate_images``: Table 1 of one scale, from the distances of single sampling seeds alone."""

import argparse
from typing import get_args

import pandas as pd

from pipeline.orchestration.stage import program, stage
from pipeline.reporting.table1 import table1_rows, yardstick
from pipeline.reporting.table1_markdown import table1_markdown
from pipeline.reporting.tables import write_table
from pipeline.settings.images import ImageMethod, ImageTaskSettings
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles, ScaleReports
from pipeline.tasks.images import load_images
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError

METHODS = ("untrained", *get_args(ImageMethod), "ft_fm", "resft_fm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    files, reports = ImageFiles(arguments.scale, arguments.task), ScaleReports(arguments.scale)
    inputs = read_inputs("tabulate_images", arguments.scale, arguments.task)
    settings = inputs.settings.image_task(arguments.task)
    there = [method for method in METHODS if files.distances(method).exists()]
    yardsticks = [path for path in (files.images, files.halves) if path.exists()]
    if not there:
        raise UserError(f"{files.reports}: no row of Table 1 is there")
    table_md = reports.table1.with_suffix(".md")
    with stage(
        inputs,
        f"tabulate_images-{arguments.scale}-{arguments.task}",
        deps=[*yardsticks, *(files.distances(method) for method in there)],
        outs=[reports.table1, table_md],
    ) as here:
        table = table1_rows(pd.concat([pd.read_csv(files.distances(method)) for method in there], ignore_index=True))
        text = table1_markdown(
            table,
            yardstick(pd.read_csv(files.halves) if files.halves in yardsticks else None, table),
            expected={method: solvers_of(method, settings) for method in METHODS},
            command=f"make repro SCALE={arguments.scale}",
            note=load_images(files.images).note if files.images in yardsticks else "",
        )
        write_table(reports.table1, table)
        write_text(table_md, text)
        here.run.table(reports.table1, "table1")
        here.run.artifact(reports.table1)
        here.run.artifact(table_md)


def solvers_of(method: str, settings: ImageTaskSettings) -> list[str]:
    """The solvers that a row can have: a residual's own steps leave none of the fewest evaluations for the base."""
    few = {f"euler-{nfe}" for nfe in range(settings.residual.residual_steps + 1)} if method == "resft_fm" else set()
    return [solver for solver in settings.fid.solvers if solver not in few]


if __name__ == "__main__":
    program(main)
