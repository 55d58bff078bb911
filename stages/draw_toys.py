"""Stage ``draw_toys``: Figure 1 of one scale, on small models, and what it shows in words and numbers."""

import argparse

from pipeline.evaluation.figure_1 import measure_figure_1
from pipeline.orchestration.stage import program, stage
from pipeline.reporting.figure_1 import figure_1
from pipeline.reporting.figure_1_markdown import figure_1_markdown, figure_1_table
from pipeline.reporting.tables import write_table
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ScaleReports, toys
from pipeline.training.toys import load_toys
from pipeline.utils.atomic import write_text
from pipeline.utils.hardware import use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    scale = parser.parse_args().scale
    inputs = read_inputs("draw_toys", scale)
    settings = inputs.settings.toys
    use_threads(settings.threads)
    picture = ScaleReports(scale).figure_1
    table, text = (picture.with_suffix(kind) for kind in (".csv", ".md"))
    with stage(
        inputs,
        f"draw_toys-{scale}",
        deps=[toys(scale)],
        outs=[table, text, picture, picture.with_suffix(".svg")],
    ) as here:
        shown = measure_figure_1(*load_toys(toys(scale), settings), settings)
        figure_1(shown, picture)
        write_table(table, figure_1_table(shown, scale))
        about = settings.model_dump(include={"seed", "sigma", "nfe", "candidates"})
        write_text(text, figure_1_markdown(shown, picture.name, scale=scale, **about))
        for file in (table, text, picture):
            here.run.artifact(file)


if __name__ == "__main__":
    program(main)
