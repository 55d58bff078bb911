"""Stage ``report_stability``: Table 2's robustness columns, and in words what the residual models' certificates say."""

import argparse
import json
from typing import Any

import pandas as pd

from pipeline.orchestration.stage import program, stage
from pipeline.reporting.certificates import certificates_markdown
from pipeline.reporting.robustness import (
    disturbed_evaluation,
    disturbed_results,
    robustness_markdown,
    robustness_table,
)
from pipeline.reporting.tables import write_table
from pipeline.reporting.titles import evaluation_titles, task_titles
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import Entry, ScaleReports, split_row
from pipeline.settings.schema import ScaleSettings
from pipeline.utils.atomic import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    arguments = parser.parse_args()
    inputs, reports = read_inputs("report_stability", arguments.scale), ScaleReports(arguments.scale)
    settings = inputs.settings
    blocks, table_md = settings.chosen(), reports.robustness.with_suffix(".md")
    with stage(
        inputs,
        f"report_stability-{arguments.scale}",
        deps=[reports.folder / "episodes", reports.folder / "metrics"],
        outs=[reports.robustness, table_md, reports.certificates],
    ) as here:
        table, missing = robustness(settings, reports)
        write_table(reports.robustness, table)
        write_text(table_md, robustness_markdown(table, settings.robustness[0], missing, evaluation_titles(blocks)))
        here.run.table(reports.robustness, "table2_robustness")
        results, absent = certificates(settings, reports)
        write_text(reports.certificates, certificates_markdown(arguments.scale, results, absent, task_titles(blocks)))
        for path in (reports.robustness, table_md, reports.certificates):
            here.run.artifact(path)


def robustness(settings: ScaleSettings, reports: ScaleReports) -> tuple[pd.DataFrame, list[Entry]]:
    """The table, and the rows that it lacks of tasks that have any."""
    tables, missing = [robustness_table(reports.scale, {}, Entry("", "", 0))], []
    for task in [task for task in settings.tasks if task not in settings.offline]:
        evaluation = disturbed_evaluation(reports, task, settings.robustness)
        if evaluation is None:
            continue
        entries = [Entry(evaluation, *split_row(row), within=task) for row in settings.robustness]
        found = disturbed_results(reports, entries)
        missing += [entry for entry in entries if entry not in found]
        of_task = settings.task(task)
        asked = {entry: of_task.precision_of(entry.method, entry.nfe) for entry in entries}
        tables.append(robustness_table(reports.scale, found, entries[0], asked))
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True), missing


def certificates(settings: ScaleSettings, reports: ScaleReports) -> tuple[list[dict[str, Any]], list[str]]:
    """The contents of the certify stage's files, and the names of those that are not there."""
    results, absent = [], []
    for task in settings.tasks:
        for row in settings.residual:
            path = reports.certificate(task, row)
            if path.exists():
                results.append(json.loads(path.read_text(encoding="utf-8")))
            else:
                absent.append(f"{task}-{row}")
    return results, absent


if __name__ == "__main__":
    program(main)
