"""Stage ``draw``: Figure 2(b) and the score-against-NFE figure of one scale."""

import argparse

import pandas as pd

from pipeline import config
from pipeline.layout import ScaleReports
from pipeline.reporting.figures import figure_2b, score_vs_nfe
from pipeline.reporting.tables import read_table
from pipeline.stage import program, stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    arguments = parser.parse_args()
    settings = config.load()
    reports = ScaleReports(arguments.scale)
    pictures = [reports.figure_2b, reports.score_vs_nfe]
    with stage(
        "stages/draw.py",
        f"draw-{arguments.scale}",
        params={"tasks": settings.tasks, "nfe": settings.nfe},
        deps=[reports.table2, reports.history],
        outs=[file for picture in pictures for file in (picture, picture.with_suffix(".svg"))],
    ) as here:
        files = [
            path
            for task in settings.tasks
            for method in ("fm", "ft_fm")
            for nfe in settings.nfe
            if (path := reports.history / f"{task}-{method}-nfe{nfe}.csv").exists()
        ]
        figure_2b(pd.concat([pd.read_csv(path) for path in files], ignore_index=True), reports.figure_2b)
        score_vs_nfe(read_table(reports.table2), reports.score_vs_nfe)
        for picture in pictures:
            here.run.artifact(picture)


if __name__ == "__main__":
    program(main)
