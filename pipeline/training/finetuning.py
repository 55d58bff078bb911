"""One training, the same for every method and task: resumable, measured on its way, watched for a collapse."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from pipeline.settings.schema import Optimization
from pipeline.training.guard import Reading
from pipeline.training.loop import BatchSource, Log, Objective, train
from pipeline.training.watch import Watch
from pipeline.utils.seeding import Generators


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        steps_before: those of the base model, from which its own are counted; 0 from scratch.
    """

    objective: Objective
    batches: BatchSource
    generators: Generators
    optimization: Optimization
    steps_before: int = 0


@dataclass(frozen=True)
class Trained:
    """The averaged net of a training, and the number of its own steps that led to it."""

    net: nn.Module
    steps: int


def run(
    training: Training,
    *,
    log: Log,
    state_path: Path | None,
    title: str,
    watch: Watch | None = None,
    measured_after: Sequence[int] = (),
    measure: Callable[[int, nn.Module], None] = lambda _step, _net: None,
) -> Trained:
    """Train, going on from what an interrupted run left.

    Args:
        log, state_path, title: as of ``pipeline.training.loop.train``.
        watch: of the samples, whose last healthy weights are returned where they collapse.
        measured_after: steps after which ``measure(step, averaged net)`` is called, 0 being before the first.
    """

    def look(step: int, net: nn.Module) -> bool:
        going_on = watch is None or watch.look(step, net)[1]
        if step in measured_after:
            measure(step, net)
        return going_on

    net = train(
        training.objective,
        training.batches,
        training.optimization,
        training.generators,
        milestones=sorted({*measured_after, *(watch.steps if watch else ())}),
        on_milestone=look,
        log=log,
        state_path=state_path,
        title=title,
    )
    steps = training.optimization.steps
    return Trained(net, watch.settle(net, steps) if watch else steps)


def figures_of(reading: Reading) -> dict[str, float]:
    """What a checkpoint's record says of its samples."""
    return {"spread_ratio": reading.spread_ratio, **asdict(reading.diversity)}
