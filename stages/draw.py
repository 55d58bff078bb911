"""Stage ``draw``: Figure 2(b) and the score-against-NFE figure of one scale."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.orchestration.stage import program, stage
from pipeline.reporting.figures import figure_2b, score_vs_nfe, write_note
from pipeline.reporting.tables import read_table
from pipeline.reporting.titles import evaluation_titles, task_titles
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ScaleReports, TaskFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.utils.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    arguments = parser.parse_args()
    inputs = read_inputs("draw", arguments.scale)
    settings = inputs.settings
    reports = ScaleReports(arguments.scale)
    pictures = [reports.figure_2b, reports.score_vs_nfe]
    with stage(
        inputs,
        f"draw-{arguments.scale}",
        deps=[reports.table2, reports.history],
        outs=[file for picture in pictures for file in (picture, picture.with_suffix(".svg"))],
    ) as here:
        blocks = settings.chosen()
        simulated = [task for task in blocks if task not in settings.offline]
        if simulated:
            score_vs_nfe(read_table(reports.table2), reports.score_vs_nfe, evaluation_titles(blocks))
        else:
            write_note("No task with environments was chosen: see offline/", reports.score_vs_nfe)
        files = histories(arguments.scale, settings, [*simulated, *settings.offline])
        history = pd.concat([pd.read_csv(path) for path in files], ignore_index=True)
        figure_2b(history, reports.figure_2b, task_titles(blocks))
        for file in pictures:
            here.run.artifact(file)


def histories(scale: str, settings: ScaleSettings, tasks: Sequence[str]) -> list[Path]:
    """Those of Figure 2(b), which is about one task: the first of ``tasks`` that has any.

    Raises:
        UserError: none has those of both methods at one NFE.
    """
    for task in tasks:
        files = []
        for nfe in settings.nfe:
            pair = [TaskFiles(scale, task).history(method, nfe) for method in ("fm", "ft_fm")]
            absent = [str(path) for path in pair if not path.exists()]
            if absent:  # after a failed run
                print(f"warning: Figure 2b leaves out NFE {nfe}: {', '.join(absent)} not found", file=sys.stderr)
            else:
                files += pair
        if files:
            return files
    folder = ScaleReports(scale).history
    raise UserError(f"{folder}: no NFE has the histories of both fm and ft_fm; Figure 2b needs them")


if __name__ == "__main__":
    program(main)
