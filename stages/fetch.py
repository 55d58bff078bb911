"""Fetch the data of a task from a mirror folder (FLOWTUNE_MIRROR) if there is one, else from the official URL.

Stage fetch gets the demonstrations of a robot task. Stage fetch_images gets images, and the weights of Inception if
distances are FID.
"""

import argparse
import os
from pathlib import Path

from pipeline.orchestration.stage import program, stage
from pipeline.settings.images import SHAPES
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles, TaskFiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True, help="a block of params.yaml")
    arguments = parser.parse_args()
    mirror = Path(folder) if (folder := os.environ.get("FLOWTUNE_MIRROR")) else None
    of = images if arguments.task in SHAPES else demonstrations
    of(arguments.scale, arguments.task, mirror)


def demonstrations(scale: str, task: str, mirror: Path | None) -> None:
    from pipeline.tasks.download import fetch

    files, inputs = TaskFiles(scale, task), read_inputs("fetch", scale, task)
    settings = inputs.settings.task(task)
    name = settings.data.dataset
    with stage(inputs, f"fetch-{scale}-{task}", deps=[], outs=[files.demonstrations]):
        fetch(name, settings.load_task().datasets[name], files.demonstrations, mirror)


def images(scale: str, task: str, mirror: Path | None) -> None:
    from pipeline.tasks.image_sources import fetch_images
    from pipeline.tasks.inception import fetch_inception

    files, inputs = ImageFiles(scale, task), read_inputs("fetch_images", scale, task)
    settings = inputs.settings.image_task(task)
    with stage(inputs, f"fetch_images-{scale}-{task}", deps=[], outs=[files.fetched]):
        fetch_images(settings.data.dataset, files.images, mirror)
        if settings.fid.features == "inception":
            fetch_inception(files.inception, mirror)


if __name__ == "__main__":
    program(main)
