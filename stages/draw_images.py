"""Stage ``draw_images``: Figure 2(a), distance over training, and Figure E.2, images from the same noise."""

import argparse

import pandas as pd
import torch

from pipeline.evaluation.generation import image_blocks
from pipeline.orchestration.stage import program, stage
from pipeline.reporting.image_figures import figure_2a, figure_e2
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles, ScaleReports
from pipeline.training.image_checkpoint import load_image_model
from pipeline.utils.hardware import use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    files, reports = ImageFiles(arguments.scale, arguments.task), ScaleReports(arguments.scale)
    inputs = read_inputs("draw_images", arguments.scale, arguments.task)
    settings = inputs.settings.image_task(arguments.task)
    use_threads(settings.threads)
    residual = files.model("resft_fm", settings.residual.nfe)
    tuned = {nfe: files.model("ft_fm", nfe) for nfe in inputs.settings.image_nfe}
    histories = [files.history("i_cfm"), *(files.history("ft_fm", nfe) for nfe in inputs.settings.image_nfe)]
    pictures = [reports.figure_2a, reports.figure_e2]
    with stage(
        inputs,
        f"draw_images-{arguments.scale}-{arguments.task}",
        deps=[*histories, files.base, residual, *tuned.values()],
        outs=[file for picture in pictures for file in (picture, picture.with_suffix(".svg"))],
    ) as here:
        figure_2a(pd.concat([pd.read_csv(path) for path in histories], ignore_index=True), reports.figure_2a)
        rows = [(f"base, NFE {nfe}", files.base, nfe) for nfe in inputs.settings.image_nfe]
        rows += [(f"FT-FM, NFE {nfe}", path, nfe) for nfe, path in tuned.items()]
        rows = sorted(rows, key=lambda row: row[2])
        rows += [("base, NFE 100", files.base, 100)]
        rows += [(f"ResFT-FM, NFE {settings.residual.nfe}", residual, settings.residual.nfe)]
        shown = {}
        for label, path, nfe in rows:
            model = load_image_model(path)[0].to("cuda" if torch.cuda.is_available() else "cpu")
            count, seed = settings.fid.shown, settings.fid.seeds()[0]
            blocks = image_blocks(
                model, f"euler-{nfe}", shape=settings.shape, n_samples=count, batch=settings.fid.batch, seed=seed
            )
            shown[label] = torch.cat([images for images, _ in blocks]).cpu().numpy()
        figure_e2(shown, reports.figure_e2)
        for picture in pictures:
            here.run.artifact(picture)


if __name__ == "__main__":
    program(main)
