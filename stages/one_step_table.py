"""Stage ``one_step_table``: the one-step study's tables, report and pictures, of all cells that are there."""

import argparse

from pipeline.orchestration.stage import program, stage
from pipeline.reporting.one_step import aggregates, answers, one_step_table, questions, read_cells
from pipeline.reporting.one_step_report import draw_against_time, draw_aggregates, draw_profiles, one_step_markdown
from pipeline.reporting.tables import write_table
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ScaleReports
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True, help="whose reports the table is one of")
    parser.add_argument("--others", nargs="*", default=[], help="scales whose cells are in it too")
    arguments = parser.parse_args()
    scales = [arguments.scale, *arguments.others]
    folder = ScaleReports(arguments.scale).folder
    names = ["one_step", "one_step_answers", "one_step_aggregates"]
    tables = [folder / f"{name}.csv" for name in names]
    report = folder / "one_step.md"
    pictures = [folder / f"{name}.png" for name in ("one_step", "one_step_aggregates", "one_step_profiles")]
    outs = [*tables, report, *pictures, *(path.with_suffix(".svg") for path in pictures)]
    inputs = read_inputs("one_step_table", arguments.scale, arguments.scale)
    deps = [folder for folder in (ScaleReports(scale).one_step for scale in scales) if folder.exists()]
    with stage(inputs, f"one_step_table-{arguments.scale}", also={"scales": scales}, deps=deps, outs=outs) as here:
        cells = read_cells(scales)
        if not cells:
            raise UserError(f"{ScaleReports(arguments.scale).one_step}: holds no cell; run `make study`")
        table, answered, aggregated = one_step_table(cells), answers(cells, questions()), aggregates(cells)
        for path, name, written in zip(tables, names, (table, answered, aggregated), strict=True):
            write_table(path, written)
            here.run.table(path, name)
        draw_against_time(table, pictures[0])
        draw_aggregates(aggregated, table, pictures[1])
        draw_profiles(cells, table, pictures[2])
        write_text(report, one_step_markdown(table, answered, aggregated, [path.name for path in pictures]))
        for path in (report, *pictures):
            here.run.artifact(path)


if __name__ == "__main__":
    program(main)
