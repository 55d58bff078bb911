"""One fine-tuning run: trained resumably, watched for collapsing samples; the same for every method and task."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from pipeline.settings.schema import Optimization
from pipeline.training.guard import Reading
from pipeline.training.journal import Sink, TrainingLog
from pipeline.training.loop import BatchSource, Objective, train
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


class Record(Sink, Protocol):
    """Where a run is shown, see ``pipeline.tracking.run.Run``."""

    def tag(self, name: str, value: str) -> None:
        """Say something of the run as a whole."""


class Workspace(Protocol):
    """What a stage gives a training, see ``pipeline.orchestration.stage.Stage``."""

    @property
    def resume(self) -> Path:
        """The folder of what a resumed run goes on from."""

    @property
    def run(self) -> Record:
        """Its run."""


class Collapsible(Protocol):
    """The part of a recipe that says when samples have collapsed, and what is done then."""

    @property
    def steps(self) -> int: ...

    @property
    def collapse_below(self) -> float: ...

    @property
    def on_collapse(self) -> str: ...


def run(
    training: Training,
    here: Workspace,
    title: str,
    log: TrainingLog,
    milestones: Sequence[int] = (),
    on_milestone: Callable[[int, nn.Module], bool] = lambda _step, _net: True,
) -> nn.Module:
    """Train, going on from what an interrupted run left; the averaged net.

    Args:
        log, milestones, on_milestone: as of ``pipeline.training.loop.train``.
    """
    here.run.tag("precision", training.optimization.precision)
    return train(
        training.objective,
        training.batches,
        training.optimization,
        training.generators,
        milestones=milestones,
        on_milestone=on_milestone,
        log=log,
        state_path=here.resume / "state.pt",
        title=title,
    )


class Supervisor:
    """Reads a model's diversity while it is fine-tuned, warns where its samples collapse, and keeps healthy weights.

    Args:
        read: held-out figures of a net. net: the model as it is before.
        recipe: what collapsing is, and whether training ends there. watches: False: figures are read only.
        title: of the run, in warnings.

    Attributes:
        healthy: whether training is to go on, after the last reading.
    """

    def __init__(
        self,
        read: Callable[[nn.Module], Reading],
        net: nn.Module,
        recipe: Collapsible,
        here: Workspace,
        title: str,
        *,
        watches: bool = True,
    ) -> None:
        def warn(text: str) -> None:
            print(f"warning: {title}: {text}", file=sys.stderr)
            here.run.tag("collapsing", text)

        self.healthy = True
        self._run = here.run
        self._watch = Watch(
            read,
            read(net),
            recipe.steps,
            collapse_below=recipe.collapse_below if watches else 0.0,
            stop=watches and recipe.on_collapse == "stop",
            tell=warn,
            keep=here.resume / "healthy.pt",
        )

    def look(self, step: int, net: nn.Module) -> Reading:
        """Read ``net`` after ``step`` updates, and show it."""
        reading, self.healthy = self._watch.look(step, net)
        ratios = {name: value for name, value in asdict(reading).items() if name.endswith("_ratio")}
        self._run.log({f"guard_{name}": value for name, value in ratios.items()}, step)
        return reading

    def settle(self, net: nn.Module, steps: int) -> int:
        """Give ``net`` the last healthy weights if it has collapsed; the steps that led to its weights, at most all."""
        return steps if self.healthy else self._watch.go_back(net)


def figures_of(reading: Reading) -> dict[str, float]:
    """What a checkpoint's record says of its samples."""
    return {"spread_ratio": reading.spread_ratio, **asdict(reading.diversity)}
