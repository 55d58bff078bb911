"""Run a resumable training of any method and task, with measurements and collapse stopping."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from pipeline.settings.schema import Optimization
from pipeline.training.collapse_stopping import CollapseStopping
from pipeline.training.diversity_monitor import DiversityReading
from pipeline.training.loop import BatchSource, Log, Objective, train
from pipeline.utils.seeding import Generators


@dataclass(frozen=True)
class Training:
    """Everything that the training of a model needs.

    Attributes:
        steps_before: training steps of the base model; 0: the training starts from random weights.
    """

    objective: Objective
    batches: BatchSource
    generators: Generators
    optimization: Optimization
    steps_before: int = 0


@dataclass(frozen=True)
class Trained:
    """Averaged net of a training, and the number of steps that led to it."""

    net: nn.Module
    steps: int


def run(
    training: Training,
    *,
    log: Log,
    state_path: Path | None,
    title: str,
    stopping: CollapseStopping | None = None,
    measured_after: Sequence[int] = (),
    measure: Callable[[int, nn.Module], None] = lambda _step, _net: None,
) -> Trained:
    """Train; continue from the state of an interrupted run if there is one.

    Args:
        log, state_path, title: as of ``pipeline.training.loop.train``.
        stopping: ends training if the samples collapse; its last healthy weights are returned then.
        measured_after: steps after which ``measure(step, averaged net)`` is called; 0: before the first.
    """

    def look(step: int, net: nn.Module) -> bool:
        going_on = stopping is None or stopping.check(step, net)
        if step in measured_after:
            measure(step, net)
        return going_on

    net = train(
        training.objective,
        training.batches,
        training.optimization,
        training.generators,
        milestones=sorted({*measured_after, *(stopping.steps if stopping else ())}),
        on_milestone=look,
        log=log,
        state_path=state_path,
        title=title,
    )
    steps = training.optimization.steps
    return Trained(net, stopping.settle(net, steps) if stopping else steps)


def checkpoint_file(resume: Path, step: int) -> Path:
    """Return the file in a stage's folder of resumable state that keeps the model after ``step`` updates."""
    return resume / "checkpoints" / f"step-{step:07d}.safetensors"


def metrics_of(reading: DiversityReading) -> dict[str, float]:
    """Return the diversity metrics of samples for the metadata of a checkpoint."""
    return {"spread_ratio": reading.spread_ratio, **asdict(reading.diversity)}
