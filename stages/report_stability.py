"""Stage ``report_stability``: Table 2's robustness columns, and in words what the residual models' certificates say."""

import argparse
import json
import sys

import pandas as pd

from pipeline import config
from pipeline.atomic import write_text
from pipeline.layout import Entry, ScaleReports, split_row
from pipeline.reporting.certificates import certificates_markdown
from pipeline.reporting.robustness import disturbed_results, robustness_markdown, robustness_table
from pipeline.reporting.tables import write_table
from pipeline.stage import program, stage
from pipeline.tasks.registry import TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    scale = parser.parse_args().scale
    settings, reports = config.load(), ScaleReports(scale)
    table_md = reports.robustness.with_suffix(".md")
    with stage(
        "stages/report_stability.py",
        f"report_stability-{scale}",
        params=settings.model_dump(include={"tasks", "residual", "robustness"}),
        deps=[reports.folder / "episodes", reports.folder / "metrics"],
        outs=[reports.robustness, table_md, reports.certificates],
    ) as here:
        tables, missing = [], []
        for task in settings.tasks:
            strengths = settings.block(scale).task(task).robustness.strengths
            for evaluation in TASKS[task].evaluations:
                entries = [Entry(evaluation, *split_row(row)) for row in settings.robustness]
                if found := disturbed_results(reports, entries):
                    tables.append(robustness_table(scale, found, entries[0], strengths))
                    missing += [entry for entry in entries if entry not in found]
        write_table(reports.robustness, pd.concat(tables, ignore_index=True))
        write_text(table_md, robustness_markdown(pd.concat(tables), settings.robustness[0], missing))
        here.run.table(reports.robustness, "table2_robustness")

        rows = [(task, row) for task in settings.tasks for row in settings.residual]
        files = {f"{task}-{row}": reports.certificate(task, row) for task, row in rows}
        results = [json.loads(path.read_text()) for path in files.values() if path.exists()]
        absent = [name for name, path in files.items() if not path.exists()]
        if absent:  # after a failed run
            print(f"warning: certificates.md leaves out {', '.join(absent)}", file=sys.stderr)
        write_text(reports.certificates, certificates_markdown(scale, results, absent))
        for path in (reports.robustness, table_md, reports.certificates):
            here.run.artifact(path)


if __name__ == "__main__":
    program(main)
