"""Stage ``draw``: Figures 1 and 2(b) and the score-against-NFE figure of one scale."""

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch

from pipeline import config
from pipeline.atomic import write_text
from pipeline.config import Settings, ToySettings
from pipeline.errors import UserError
from pipeline.evaluation.figure_1 import measure_figure_1
from pipeline.layout import ScaleReports, TaskFiles, toys
from pipeline.reporting.figure_1 import figure_1
from pipeline.reporting.figure_1_markdown import figure_1_markdown, figure_1_table
from pipeline.reporting.figures import figure_2b, score_vs_nfe
from pipeline.reporting.tables import read_table, write_table
from pipeline.stage import program, stage
from pipeline.training.toys import load_toys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    arguments = parser.parse_args()
    settings = config.load()
    reports = ScaleReports(arguments.scale)
    of_toys = settings.block(arguments.scale).toys
    torch.set_num_threads(of_toys.threads)
    pictures = [reports.figure_1, reports.figure_2b, reports.score_vs_nfe]
    texts = [reports.figure_1.with_suffix(kind) for kind in (".csv", ".md")]
    with stage(
        "stages/draw.py",
        f"draw-{arguments.scale}",
        params={"tasks": settings.tasks, "nfe": settings.nfe, "toys": of_toys.model_dump()},
        deps=[reports.table2, reports.history, toys(arguments.scale)],
        outs=[*texts, *(file for picture in pictures for file in (picture, picture.with_suffix(".svg")))],
    ) as here:
        score_vs_nfe(read_table(reports.table2), reports.score_vs_nfe)
        files = histories(arguments.scale, settings)
        figure_2b(pd.concat([pd.read_csv(path) for path in files], ignore_index=True), reports.figure_2b)
        draw_figure_1(reports, of_toys)
        for file in [*texts, *pictures]:
            here.run.artifact(file)


def histories(scale: str, settings: Settings) -> list[Path]:
    """Those of Figure 2(b), which is about one task: the first that has any.

    Raises:
        UserError: none has those of both methods at one NFE.
    """
    for task in settings.tasks:
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


def draw_figure_1(reports: ScaleReports, settings: ToySettings) -> None:
    """The figure, and what it shows in words and numbers."""
    shown = measure_figure_1(*load_toys(toys(reports.scale), settings), settings)
    figure_1(shown, reports.figure_1)
    write_table(reports.figure_1.with_suffix(".csv"), figure_1_table(shown, reports.scale))
    about = settings.model_dump(include={"seed", "sigma", "nfe", "candidates"})
    text = figure_1_markdown(shown, reports.figure_1.name, scale=reports.scale, **about)
    write_text(reports.figure_1.with_suffix(".md"), text)


if __name__ == "__main__":
    program(main)
