"""Stage ``tabulate``: Table 2 of one scale, from the episode files alone."""

import argparse
from pathlib import Path

from pipeline import config
from pipeline.atomic import write_text
from pipeline.layout import Entry, ScaleReports, TaskFiles, fingerprint, split_row
from pipeline.reporting.episodes import read_episodes
from pipeline.reporting.tables import markdown, missing_rows, task_table, write_table
from pipeline.stage import program, stage
from pipeline.tasks.registry import TASKS

STALE = "its episodes are of another model than the present one: a stage before them failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument(
        "--partial",
        action="store_true",
        help="after a failed run: leave out rows whose model is gone or has changed since its rollouts",
    )
    arguments = parser.parse_args()
    settings = config.load()
    reports = ScaleReports(arguments.scale)
    models: list[tuple[str, int]] = [(method, 0) for method in settings.baselines]
    models += [split_row(row) for row in settings.diffusion]
    models += [(method, nfe) for nfe in settings.nfe for method in ("fm", "ft_fm")]
    models += [split_row(row) for row in settings.residual]
    rows = {
        Entry(evaluation, method, nfe, within=task): TaskFiles(arguments.scale, task).model(method, nfe)
        for task in settings.tasks
        for evaluation in TASKS[task].evaluations
        for method, nfe in models
    }
    block = settings.block(arguments.scale)
    asked = {row: block.task(row.within).precision_of(row.method, row.nfe) for row in rows}
    stale = [row for row, model in rows.items() if arguments.partial and is_stale(row, reports.folder, model)]
    table_md = reports.table2.with_suffix(".md")
    with stage(
        "stages/tabulate.py",
        f"tabulate-{arguments.scale}",
        params=settings.model_dump(include={"tasks", "nfe", "residual", "diffusion", "baselines"}),
        deps=[reports.folder / "episodes", reports.folder / "metrics"],
        outs=[reports.table2, table_md],
    ) as here:
        table = task_table(reports.folder, [row for row in rows if row not in stale], asked)
        missing = missing_rows(reports.folder, list(rows)) | dict.fromkeys(stale, STALE)
        write_table(reports.table2, table)
        write_text(table_md, markdown(table, missing, scale=arguments.scale))
        here.run.table(reports.table2, "table2")
        here.run.artifact(reports.table2)
        here.run.artifact(table_md)


def is_stale(row: Entry, reports: Path, model: Path) -> bool:
    """Whether the episodes of ``row`` are there, but not those of ``model`` as it is now."""
    path = row.episodes(reports)
    if not path.exists():
        return False
    return not model.exists() or set(read_episodes(reports, row)["checkpoint"]) != {fingerprint(model)}


if __name__ == "__main__":
    program(main)
