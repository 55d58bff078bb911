"""Stage ``train_extractor``: the classifier in whose features images are compared, and how far apart real images are.

The distance between two random halves of the real data is what a perfect model could reach with as many images.
"""

import argparse

import pandas as pd
import torch

from pipeline.evaluation.features import save_extractor
from pipeline.evaluation.fid import halves_distances
from pipeline.orchestration.stage import program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles
from pipeline.tasks.images import load_images
from pipeline.training.extractor import train_extractor
from pipeline.training.image_judge import features_of
from pipeline.utils.atomic import write_csv
from pipeline.utils.hardware import use_threads
from pipeline.utils.shipped import Shipment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    files = ImageFiles(arguments.scale, arguments.task)
    inputs = read_inputs("train_extractor", arguments.scale, arguments.task)
    settings = inputs.settings.image_task(arguments.task)
    use_threads(settings.threads)

    deps, outs = [files.images], [files.extractor, files.halves]
    shipment = Shipment(arguments.scale, arguments.task, "train_extractor", inputs.params, deps, outs)
    with stage(inputs, f"train_extractor-{arguments.scale}-{arguments.task}", deps=deps, outs=outs) as here:
        if shipment.unpack():
            return
        images = load_images(files.images)
        trained = train_extractor(
            torch.from_numpy(images.images),
            torch.from_numpy(images.labels),
            **here.settled(settings.extractor).model_dump(),
            flip=settings.data.flip,
            seed=settings.seed,
            log=here.run.log,
            state_path=here.resume / "state.pt",
        )
        save_extractor(files.extractor, trained.net, held_out_accuracy=trained.held_out_accuracy)
        here.run.log({"held_out_accuracy": trained.held_out_accuracy})
        seeds = list(range(settings.fid.halves))
        distances = halves_distances(images.images, features_of(files, settings), seeds)
        table = pd.DataFrame({"split_seed": seeds, "distance": distances})
        table.insert(0, "scale", arguments.scale)
        table.insert(1, "dataset", settings.data.dataset)
        table.insert(3, "n_samples", len(images.images) // 2)
        table.insert(4, "features", settings.fid.features)
        write_csv(files.halves, table)
        here.run.artifact(files.halves)
        shipment.note()


if __name__ == "__main__":
    program(main)
