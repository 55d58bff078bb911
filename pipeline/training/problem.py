"""A stage that trains: the files that it reads and writes, and how its problem is loaded, measured and saved."""

import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn

from pipeline.nets.lora import trainable_parameters
from pipeline.settings.blocks import Block
from pipeline.settings.schema import ScaleSettings
from pipeline.training.finetuning import Trained, Training, run
from pipeline.training.guard import Reading
from pipeline.training.job import Asked
from pipeline.training.journal import Sink, TrainingLog
from pipeline.training.watch import Watch

Settings = TypeVar("Settings", bound=Block)


class Record(Sink, Protocol):
    """Where a run is shown, see ``pipeline.tracking.run.Run``."""

    def tag(self, key: str, value: str) -> None:
        """Say something of the run as a whole."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file."""


class Workspace(Protocol):
    """What a stage is given when it begins, see ``pipeline.orchestration.stage.Stage``."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes results."""

    @property
    def run(self) -> Record:
        """Its run."""

    @property
    def resume(self) -> Path:
        """The folder of what a resumed run goes on from."""

    def settled(self, settings: Settings) -> Settings:
        """``settings`` with what ``precision: auto`` is here, or was where the run that is resumed began."""


class Collapsible(Protocol):
    """The part of a recipe that says when samples have collapsed, and what is done then."""

    @property
    def steps(self) -> int: ...

    @property
    def collapse_below(self) -> float: ...

    @property
    def on_collapse(self) -> str: ...


class Problem(ABC):
    """A training of one task. It is loaded when it is made, measured along the way, and saved at the end.

    Attributes:
        label: of its run. log: the losses.
        training: what is minimised, and how.
        watch: of the diversity of its samples; None: nothing is watched.
        measured_after: steps after which ``measure`` is called.
    """

    training: Training
    watch: Watch | None = None
    measured_after: Sequence[int] = ()

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        del settings
        self.asked = asked
        self.here = here
        self.label = label
        self.log = TrainingLog(here.resume / "log.jsonl", here.run)

    def checkpoint(self, step: int) -> Path:
        """Where the model after ``step`` updates is kept until the end."""
        return self.here.resume / "checkpoints" / f"step-{step:07d}.safetensors"

    def copy_checkpoints(self, to: Path) -> None:
        """Make the folder ``to`` of all checkpoints."""
        if to.exists():
            shutil.rmtree(to)
        shutil.copytree(self.checkpoint(0).parent, to)

    def measure(self, step: int, net: nn.Module) -> None:  # noqa: B027  (most have nothing to note)
        """Note how the averaged ``net`` does after ``step`` updates; it may be called again after a resume."""

    @abstractmethod
    def save(self, trained: Trained) -> None:
        """Write the outputs."""

    def watch_over(
        self,
        read: Callable[[nn.Module], Reading],
        net: nn.Module,
        recipe: Collapsible,
        steps: Sequence[int],
        *,
        watches: bool = True,
    ) -> Watch:
        """A watch whose readings and warnings are shown in the run.

        Args:
            read: held-out figures of a net. net: the model as it is before training.
            recipe: what collapsing is, and whether training ends there. steps: those after which ``read`` is called.
            watches: False: figures are read only.
        """

        def tell(text: str) -> None:
            print(f"warning: {self.label}: {text}", file=sys.stderr)
            self.here.run.tag("collapsing", text)

        def show(reading: Reading, step: int) -> None:
            ratios = {name: value for name, value in asdict(reading).items() if name.endswith("_ratio")}
            self.here.run.log({f"guard_{name}": value for name, value in ratios.items()}, step)

        return Watch(
            read,
            read(net),
            recipe.steps,
            collapse_below=recipe.collapse_below if watches else 0.0,
            stop=watches and recipe.on_collapse == "stop",
            tell=tell,
            show=show,
            keep=self.here.resume / "healthy.pt",
            steps=steps,
        )


def trains(of: type[Problem]) -> Callable[[Asked, ScaleSettings, Workspace, str], None]:
    """The work of a stage that trains such a problem, resumably, and saves it."""

    def work(asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        problem = of(asked, settings, here, label)
        here.run.tag("precision", problem.training.optimization.precision)
        here.run.tag("trainable_parameters", str(trainable_parameters(problem.training.objective.net)))
        trained = run(
            problem.training,
            log=problem.log,
            state_path=here.resume / "state.pt",
            title=label,
            watch=problem.watch,
            measured_after=problem.measured_after,
            measure=problem.measure,
        )
        if here.main:
            problem.save(trained)

    return work
