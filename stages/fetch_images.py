"""Stage ``fetch_images``: get a task's images, from a mirror folder if there is one, else from their official URL.

Where distances are to be FID, the weights of Inception too.
"""

import argparse
import os
from pathlib import Path

from pipeline.orchestration.stage import program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles
from pipeline.tasks.image_sources import fetch_images
from pipeline.tasks.inception import fetch_inception


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    files = ImageFiles(arguments.scale, arguments.task)
    inputs = read_inputs("fetch_images", arguments.scale, arguments.task)
    settings = inputs.settings.image_task(arguments.task)
    dataset, features = settings.data.dataset, settings.fid.features

    mirror = Path(folder) if (folder := os.environ.get("FLOWTUNE_MIRROR")) else None
    label = f"fetch_images-{arguments.scale}-{arguments.task}"
    with stage(inputs, label, deps=[], outs=[files.fetched]):
        fetch_images(dataset, files.images, mirror)
        if features == "inception":
            fetch_inception(files.inception, mirror)


if __name__ == "__main__":
    program(main)
