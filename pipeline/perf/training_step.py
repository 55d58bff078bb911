"""Measure what a step of a training costs here: the training loop itself, run for a few steps."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.settings.schema import Optimization
from pipeline.training.loop import BatchSource, Objective, train
from pipeline.utils.memory import peak_of_this_process
from pipeline.utils.seeding import Generators

WARM_UP = 2  # steps in which buffers are made and kernels chosen


@dataclass(frozen=True)
class StepCost:
    """The mean of a few steps.

    Attributes:
        seconds: of a clock, other programs' share included. core_seconds: of this process on all cores; on a GPU those
            of the CPU that drives it. peak_bytes: the most that the process ever had, of the GPU where there is one.
    """

    seconds: float
    core_seconds: float
    peak_bytes: int


def measure_steps(
    objective: Objective, batches: BatchSource, optimization: Optimization, generators: Generators, steps: int
) -> StepCost:
    """Train for ``WARM_UP`` and then ``steps`` steps, and measure those; the net of ``objective`` is changed by it.

    Args:
        optimization: as of the whole training, its precision fp32 or bf16.
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
