"""Stage ``tabulate_settings``: Tables D.1 and D.2 of one scale, from params.yaml."""

import argparse

from pipeline.orchestration.stage import program, stage
from pipeline.reporting.hyperparameters import hyperparameters_markdown, table_d1, table_d2
from pipeline.reporting.tables import write_table
from pipeline.reporting.titles import task_titles
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ScaleReports
from pipeline.utils.atomic import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    arguments = parser.parse_args()
    inputs, reports = read_inputs("tabulate_settings", arguments.scale), ScaleReports(arguments.scale)
    settings = inputs.settings
    with stage(
        inputs,
        f"tabulate_settings-{arguments.scale}",
        deps=[],
        outs=[reports.table_d1, reports.table_d2, reports.tables_d],
    ) as here:
        d1, d2 = table_d1(settings, settings.tasks, max(settings.nfe)), table_d2(settings, settings.tasks)
        write_table(reports.table_d1, d1)
        write_table(reports.table_d2, d2)
        write_text(
            reports.tables_d, hyperparameters_markdown(d1, d2, task_titles(settings.chosen()), scale=arguments.scale)
        )
        for path in (reports.table_d1, reports.table_d2):
            here.run.table(path, path.stem)
        here.run.artifact(reports.tables_d)


if __name__ == "__main__":
    program(main)
