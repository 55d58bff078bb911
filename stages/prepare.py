"""Stage ``prepare``: turn demonstrations into encoded, normalised training windows."""

import argparse
import sys

from pipeline.orchestration.stage import program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import TaskFiles
from pipeline.training.data import prepare
from pipeline.training.frames import prepare_frames, write_no_frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    files = TaskFiles(arguments.scale, arguments.task)
    inputs = read_inputs("prepare", arguments.scale, arguments.task)
    settings = inputs.settings.task(arguments.task)

    label = f"prepare-{arguments.scale}-{arguments.task}"
    outs = [files.prepared, files.frames]
    with stage(inputs, label, deps=[files.demonstrations], outs=outs) as here:
        task = settings.load_task()
        dataset, observation = task.datasets[settings.data.dataset], task.observations[settings.data.observation]
        if dataset.images and not observation.render:
            unseen = f"data.observation: {settings.data.observation}"
            print(f"{arguments.task}: {unseen} leaves the data set's pictures out", file=sys.stderr)
        seen = dataset.images(files.demonstrations) if observation.render and dataset.images else None
        demonstrations = seen.demonstrations if seen else dataset.read(files.demonstrations)
        if task.check:
            task.check(demonstrations, settings.data.horizon)
        as_told = settings.data, observation.encode, settings.seed
        if seen:
            data = prepare_frames(seen, *as_told, files.frames, task.least_variation, offline=task.offline)
        else:
            data = prepare(demonstrations, *as_told, task.least_variation, offline=task.offline, series=task.series)
            write_no_frames(files.frames)
        data.save(files.prepared)
        here.run.log({"windows": len(data.action), "held_out_windows": len(data.held_out_action)})


if __name__ == "__main__":
    program(main)
