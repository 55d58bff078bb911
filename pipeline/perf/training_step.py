"""Measure the cost of a training step on this machine by running the training loop for a few steps."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.settings.schema import Optimization
from pipeline.training.loop import BatchSource, Objective, train
from pipeline.utils.memory import peak_of_this_process
from pipeline.utils.seeding import Generators

WARM_UP = 2  # first steps, which allocate buffers and choose kernels


@dataclass(frozen=True)
class StepCost:
    """Mean cost per step over a few steps.

    Attributes:
        seconds: wall-clock time, slowed down by other programs too. core_seconds: CPU time of this process on all
            cores; with a GPU, of the CPU that drives it. peak_bytes: peak memory of the process, or of the GPU if used.
    """

    seconds: float
    core_seconds: float
    peak_bytes: int


def measure_steps(
    objective: Objective, batches: BatchSource, optimization: Optimization, generators: Generators, steps: int
) -> StepCost:
    """Train for ``WARM_UP`` and then ``steps`` steps; measure the latter. This changes the net of ``objective``.

    Args:
        optimization: the settings of the whole training; precision is fp32 or bf16.
    """
    clocks: list[tuple[float, float]] = []

    def look(step: int, net: nn.Module) -> bool:
        del net
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clocks.append((time.perf_counter(), time.process_time()))
        return step < WARM_UP + steps

    whole = optimization.model_copy(update={"steps": max(optimization.steps, WARM_UP + steps)})
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with peak_of_this_process() as peak:
        train(
            objective,
            batches,
            whole,
            generators,
            milestones=[WARM_UP, WARM_UP + steps],
            on_milestone=look,
            title="measure",
        )
    (start, start_cores), (end, end_cores) = clocks
    most = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak.total
    return StepCost((end - start) / steps, (end_cores - start_cores) / steps, most)
