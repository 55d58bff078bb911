"""Stage ``tabulate_offline``: the table and the figure of an offline task, from its files of held-out episodes."""

import argparse

from pipeline.orchestration.stage import program, stage
from pipeline.reporting.offline_figure import offline_vs_nfe
from pipeline.reporting.offline_table import offline_markdown, offline_table
from pipeline.reporting.tables import missing_rows, write_table
from pipeline.reporting.titles import task_titles
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import Entry, ScaleReports, listed_models
from pipeline.utils.atomic import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    scale, task, reports = arguments.scale, arguments.task, ScaleReports(arguments.scale)
    inputs = read_inputs("tabulate_offline", scale, task)
    rows = [Entry(task, method, nfe, within=task) for method, nfe in listed_models(inputs.settings)]
    table_csv = reports.offline(task)
    table_md, picture = table_csv.with_suffix(".md"), table_csv.with_suffix(".png")
    with stage(
        inputs,
        f"tabulate_offline-{scale}-{task}",
        deps=[reports.folder / "episodes", reports.folder / "metrics"],
        outs=[table_csv, table_md, picture, picture.with_suffix(".svg")],
    ) as here:
        table, title = offline_table(reports, rows), task_titles({task: inputs.settings.task(task)})[task]
        write_table(table_csv, table)
        write_text(table_md, offline_markdown(table, missing_rows(reports.folder, rows), scale=scale, title=title))
        offline_vs_nfe(table, picture, title)
        here.run.table(table_csv, f"offline-{task}")
        for path in (table_csv, table_md, picture):
            here.run.artifact(path)


if __name__ == "__main__":
    program(main)
