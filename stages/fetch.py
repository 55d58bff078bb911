"""Stage ``fetch``: get a task's demonstrations, from a mirror folder if there is one, else from their official URL."""

import argparse
import os
from pathlib import Path

from pipeline.orchestration.stage import program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import TaskFiles
from pipeline.tasks.download import fetch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    files = TaskFiles(arguments.scale, arguments.task)
    inputs = read_inputs("fetch", arguments.scale, arguments.task)
    settings = inputs.settings.task(arguments.task)
    name = settings.data.dataset

    mirror = os.environ.get("FLOWTUNE_MIRROR")
    label = f"fetch-{arguments.scale}-{arguments.task}"
    with stage(inputs, label, deps=[], outs=[files.demonstrations]):
        fetch(name, settings.load_task().datasets[name], files.demonstrations, Path(mirror) if mirror else None)


if __name__ == "__main__":
    program(main)
