"""Predict the cost of a scale on this device: ``python -m stages.plan --scale paper``.

The program takes a few steps of every training of the scale on synthetic data and predicts hours and memory from them.
It downloads and writes nothing. The forecast excludes rollouts in simulators, reading of camera images, certificates
and drawing. Times depend on the present load of the device; core hours depend less on it.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch

from pipeline.orchestration.stage import program
from pipeline.perf.comparison import machine
from pipeline.perf.forecast import Forecast, forecasts
from pipeline.settings import schema
from pipeline.settings.layers import Scale
from pipeline.utils.errors import UserError

HEAD = ("task", "training", "steps", "batch", "precision", "ms a step", "hours", "core hours", "memory, GB", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True, choices=get_args(Scale))
    parser.add_argument("--tasks", nargs="*", help="robot tasks; by default all of the scale's list")
    parser.add_argument("--images", nargs="*", help="image tasks; by default those of the scale's list")
    parser.add_argument("--steps", type=int, default=3, help="steps to measure of each training")
    parser.add_argument("--rows", type=int, help="measure batches of at most this size, at least 2, and extrapolate")
    arguments = parser.parse_args()
    if arguments.steps < 1 or (arguments.rows or 2) < 2:
        raise UserError("--steps: allowed: 1 or more; --rows: 2 or more")
    settings = schema.load(Path("params.yaml")).block(arguments.scale)
    lists = {"tasks": arguments.tasks, "images": arguments.images}
    settings = settings.model_copy(update={name: given for name, given in lists.items() if given is not None})

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"scale {arguments.scale} on {machine()}, {gpu} ({torch.cuda.device_count()} in all)\n")
    for line in table(forecasts(settings, arguments.steps, arguments.rows)):
        print(line, flush=True)


def table(rows: Iterator[Forecast]) -> Iterator[str]:
    """Yield the lines of a Markdown table as the rows come in, and their sum."""
    yield f"| {' | '.join(HEAD)} |"
    yield "| --- " * len(HEAD) + "|"
    hours = core_hours = 0.0
    for row in rows:
        memory = f"{row.peak_bytes / 1e9:.1f}" if row.peak_bytes else "—"
        times = (f"{1000 * row.seconds:.3g}", f"{row.hours:.3g}", f"{row.core_hours:.3g}")
        cells = (row.task, row.name, str(row.steps), str(row.batch_size), row.precision, *times, memory, row.note)
        yield f"| {' | '.join(cells)} |"
        if not math.isnan(row.hours):
            hours, core_hours = hours + row.hours, core_hours + row.core_hours
    yield f"| **all** | | | | | | **{hours:.3g}** | **{core_hours:.3g}** | | |"


if __name__ == "__main__":
    program(main)
