"""Predict hours and memory of all trainings of a scale on this device, from a few measured steps of each."""

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from pipeline.evaluation.image_models import ImageModel
from pipeline.perf.training_step import StepCost, measure_steps
from pipeline.perf.trainings import Training, trainings
from pipeline.settings.images import ImageTaskSettings
from pipeline.settings.schema import ScaleSettings
from pipeline.training.image_checkpoint import ImageMetadata, build_image_model
from pipeline.utils.precision import Precision, autocast, device_kind, native
from pipeline.utils.seeding import Generators

ADAPTIVE_NFE = 150
"""Assumed evaluations of an adaptive solve of images; the paper's Table 1 has 134 to 146."""
METHODS = 10
"""Rows of Table 1 with images, including the untrained net."""


@dataclass(frozen=True)
class Forecast:
    """Predicted time and memory of one training, or of the generation of images.

    Attributes:
        steps: optimiser steps, or evaluations of the net for single images. seconds, core_seconds: time of one.
        hours: wall-clock time on this device. core_hours: CPU time. peak_bytes: memory of a process; 0: not measured.
        note: assumptions, and parts that are not included.
    """

    task: str
    name: str
    steps: int
    batch_size: int
    precision: str
    seconds: float
    hours: float
    core_hours: float
    peak_bytes: int
    note: str = ""


def forecasts(settings: ScaleSettings, measured_steps: int, rows: int | None = None) -> Iterator[Forecast]:
    """Yield a forecast for each training, then for the images of each image task, as each is measured.

    Args:
        measured_steps: steps to measure of each training.
        rows: batch size, at least 2, for nets too large for this device: instead of a larger batch, this batch and a
            quarter of it are measured, and the time is extrapolated. Memory is that of the measured batch.
    """
    precision, costs = native(), dict[tuple[str, str], StepCost | None]()
    solves = {str(image): _solve(settings.image_task(image), precision, rows) for image in settings.images}
    for training in trainings(settings, precision):
        key = training.task, training.like
        if key not in costs:
            threads = _threads(settings, training.task)
            costs[key] = _apart(partial(_measured, training, measured_steps, rows, threads))
        yield _of_training(training, costs[key], solves)
    for image in settings.images:
        cost = _solve(settings.image_task(image), "fp32", rows)
        for name, evaluations in _sampling(settings.image_task(image), settings.image_nfe).items():
            seconds, cores = (cost.seconds, cost.core_seconds) if cost else (math.nan, math.nan)
            hours, of_cores = evaluations * seconds / 3600, evaluations * cores / 3600
            note = f"adaptive solves taken for {ADAPTIVE_NFE} evaluations" if name == "images of Table 1" else ""
            yield Forecast(image, name, evaluations, 1, "fp32", seconds, hours, of_cores, 0, note)


def _of_training(training: Training, cost: StepCost | None, solves: Mapping[str, StepCost | None]) -> Forecast:
    optimization = training.optimization
    about = (training.task, training.name, optimization.steps, optimization.batch_size, optimization.precision)
    if cost is None:
        return Forecast(*about, math.nan, math.nan, math.nan, 0, "does not fit into this device's memory")
    devices = torch.cuda.device_count() or 1
    turns = training.processes / min(training.processes, devices)
    hours = optimization.steps * turns * cost.seconds / 3600
    core_hours = optimization.steps * training.processes * cost.core_seconds / 3600
    if training.solves and (solve := solves.get(training.task)):
        hours += training.solves * solve.seconds / 3600
        core_hours += training.solves * solve.core_seconds / 3600
    note = "without its solves ahead, whose number depends on the data" if training.solves is None else ""
    return Forecast(*about, cost.seconds, hours, core_hours, cost.peak_bytes, note)


def _measured(training: Training, steps: int, rows: int | None, threads: int) -> StepCost:
    torch.set_num_threads(threads)
    generators = Generators(0)
    objective, batches = training.build(generators)
    size = max(1, training.optimization.batch_size // training.processes)

    def cost(batch: int) -> StepCost:
        optimization = training.optimization.model_copy(update={"batch_size": batch, "warmup": 0})
        return measure_steps(objective, batches, optimization, generators, steps)

    if rows is None or size <= rows:
        return cost(size)
    few, more = cost(max(1, rows // 4)), cost(rows)
    return replace(
        more,
        seconds=_extrapolated(few.seconds, more.seconds, rows, size),
        core_seconds=_extrapolated(few.core_seconds, more.core_seconds, rows, size),
    )


def _extrapolated(few: float, more: float, rows: int, size: int) -> float:
    """Extrapolate the cost of ``size`` rows along the line through the costs of ``rows`` // 4 and ``rows``.

    The line has an offset, since the optimiser's work on the weights does not grow with the batch.
    """
    slope = max(0.0, more - few) / (rows - max(1, rows // 4))
    return more + slope * (size - rows)


def _threads(settings: ScaleSettings, task: str) -> int:
    return (settings.image_task(task) if task in settings.images else settings.task(task)).threads


def _solve(settings: ImageTaskSettings, precision: Precision, rows: int | None) -> StepCost | None:
    """Measure the cost per image of an evaluation of the base net on a batch; None: it does not fit into memory."""
    return _apart(partial(_solved, settings, precision, rows))


def _solved(settings: ImageTaskSettings, precision: Precision, rows: int | None) -> StepCost:
    torch.set_num_threads(settings.threads)
    data = settings.data.dataset
    record = ImageMetadata("", data, "i_cfm", "i_cfm", 0, 0, 0.0, settings.seed, settings.net, settings.pretrain)
    model: ImageModel = build_image_model(record).to(device_kind())
    size = min(settings.fid.batch, rows or settings.fid.batch)
    noise, generator = torch.randn(size, *settings.shape), torch.Generator()
    with torch.no_grad(), autocast(device_kind(), precision):
        for _ in range(2):  # the first warms up
            start = time.perf_counter(), time.process_time()
            model.sample(noise, "euler-1", generator)[0].cpu()
            spent = time.perf_counter() - start[0], time.process_time() - start[1]
    return StepCost(spent[0] / size, spent[1] / size, 0)


def _sampling(settings: ImageTaskSettings, nfes: list[int]) -> dict[str, int]:
    """Count evaluations for single images: for the selection of checkpoints, the histories and the table."""
    select, fid = settings.select, settings.fid
    of_one = select.n_samples * select.sampling_seeds
    along = sum(nfe * (1 + settings.finetune[f"nfe{nfe}"].history_points) for nfe in nfes)
    solvers = (ADAPTIVE_NFE if name == "dopri5" else int(name.removeprefix("euler-")) for name in fid.solvers)
    return {
        "images of the selection": of_one * (1 + settings.pretrain.checkpoints) * sum({*nfes, select.nfe}),
        "images of the histories": of_one * along,
        "images of Table 1": METHODS * fid.n_samples * fid.sampling_seeds * sum(solvers),
    }


def _apart(work: Callable[[], StepCost]) -> StepCost | None:
    """Run ``work``, on a CPU in a process of its own so that memory is measured alone; None: out of memory."""
    if torch.cuda.is_available():
        try:
            return work()
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(work, theirs))
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:  # killed, as Linux does when memory runs out
        return None
    finally:
        process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _send(work: Callable[[], StepCost], pipe: Connection) -> None:
    answer: Any
    try:
        answer = work()
    except Exception as error:
        answer = error
    pipe.send(answer)
