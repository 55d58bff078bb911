"""Stage ``tabulate``: Table 2 of one scale, from the episode files alone."""

import argparse

from pipeline.orchestration.stage import program, stage
from pipeline.reporting.tables import markdown, missing_rows, task_table, write_table
from pipeline.reporting.titles import evaluation_titles, quoted
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import Entry, ScaleReports, listed_models
from pipeline.utils.atomic import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    arguments = parser.parse_args()
    inputs = read_inputs("tabulate", arguments.scale)
    settings = inputs.settings
    reports = ScaleReports(arguments.scale)
    blocks = settings.chosen()
    rows = [
        Entry(evaluation, method, nfe, within=task)
        for task in blocks
        for evaluation in blocks[task].load_task().evaluations(task)
        for method, nfe in listed_models(settings)
    ]
    asked = {row: settings.task(row.within).precision_of(row.method, row.nfe) for row in rows}
    table_md = reports.table2.with_suffix(".md")
    with stage(
        inputs,
        f"tabulate-{arguments.scale}",
        deps=[reports.folder / "episodes", reports.folder / "metrics"],
        outs=[reports.table2, table_md],
    ) as here:
        table = task_table(reports.folder, rows, asked, quoted(blocks))
        missing = missing_rows(reports.folder, rows)
        write_table(reports.table2, table)
        write_text(table_md, markdown(table, missing, scale=arguments.scale, titles=evaluation_titles(blocks)))
        here.run.table(reports.table2, "table2")
        here.run.artifact(reports.table2)
        here.run.artifact(table_md)


if __name__ == "__main__":
    program(main)
