"""Train as a stage: load a problem, measure it during training, and save it."""

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
from pipeline.training.collapse_stopping import CollapseStopping
from pipeline.training.diversity_monitor import DiversityReading
from pipeline.training.finetuning import Trained, Training, checkpoint_file, run
from pipeline.training.job import Asked
from pipeline.training.journal import Sink, TrainingLog

Settings = TypeVar("Settings", bound=Block)


class RunLog(Sink, Protocol):
    """Log of a run, see ``pipeline.tracking.run.Run``."""

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file."""

    def table(self, path: Path, name: str) -> None:
        """Keep a CSV file as a table."""


class Workspace(Protocol):
    """Working environment of a stage, see ``pipeline.orchestration.stage.Stage``."""

    @property
    def main(self) -> bool:
        """Tell whether this process writes the results."""

    @property
    def run(self) -> RunLog:
        """Return the run of the stage."""

    @property
    def resume(self) -> Path:
        """Return the folder with the state that a resumed run continues from."""

    def settled(self, settings: Settings) -> Settings:
        """Return ``settings`` with ``precision: auto`` replaced, by the same value after a resume."""


class Collapsible(Protocol):
    """Part of a recipe with the threshold of a collapse and the reaction to it."""

    @property
    def steps(self) -> int: ...

    @property
    def collapse_below(self) -> float: ...

    @property
    def on_collapse(self) -> str: ...


class Problem(ABC):
    """Training of one task: the constructor loads it, ``measure`` runs during training and ``save`` after it.

    Attributes:
        label: the name of its run. log: its losses.
        training: the objective, the batches and the optimiser.
        stopping: ends training if the diversity of its samples collapses; None: no such stopping.
        measured_after: steps after which ``measure`` is called.
    """

    training: Training
    stopping: CollapseStopping | None = None
    measured_after: Sequence[int] = ()

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        del settings
        self.asked = asked
        self.here = here
        self.label = label
        self.log = TrainingLog(here.resume / "log.jsonl", here.run)

    def checkpoint(self, step: int) -> Path:
        """Return the file that keeps the model after ``step`` updates until the end."""
        return checkpoint_file(self.here.resume, step)

    def copy_checkpoints(self, to: Path) -> None:
        """Replace the folder ``to`` by all checkpoints."""
        if to.exists():
            shutil.rmtree(to)
        shutil.copytree(self.checkpoint(0).parent, to)

    def measure(self, step: int, net: nn.Module) -> None:  # noqa: B027  (most have nothing to note)
        """Measure the averaged ``net`` after ``step`` updates. A resume may repeat a call."""

    @abstractmethod
    def save(self, trained: Trained) -> None:
        """Write the outputs of the stage."""

    def collapse_stopping(
        self,
        measure: Callable[[nn.Module], DiversityReading],
        net: nn.Module,
        recipe: Collapsible,
        steps: Sequence[int],
        *,
        stops: bool = True,
    ) -> CollapseStopping:
        """Build collapse stopping that logs its readings and warnings in the run.

        Args:
            measure: measures the diversity of a net's held-out samples. net: the model before training.
            recipe: has the threshold of a collapse and the reaction to it. steps: when ``measure`` is called.
            stops: False: diversity is measured, but training never ends early.
        """

        def tell(text: str) -> None:
            print(f"warning: {self.label}: {text}", file=sys.stderr)
            self.here.run.tag("collapsing", text)

        def show(reading: DiversityReading, step: int) -> None:
            ratios = {name: value for name, value in asdict(reading).items() if name.endswith("_ratio")}
            self.here.run.log({f"guard_{name}": value for name, value in ratios.items()}, step)

        return CollapseStopping(
            measure,
            measure(net),
            recipe.steps,
            collapse_below=recipe.collapse_below if stops else 0.0,
            stop=stops and recipe.on_collapse == "stop",
            warn=tell,
            show=show,
            keep=self.here.resume / "healthy.pt",
            steps=steps,
        )


def trains(of: type[Problem]) -> Callable[[Asked, ScaleSettings, Workspace, str], None]:
    """Return the work of a stage: load such a problem, train it resumably, and save it."""

    def work(asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        problem = of(asked, settings, here, label)
        here.run.tag("precision", problem.training.optimization.precision)
        here.run.tag("trainable_parameters", str(trainable_parameters(problem.training.objective.net)))
        trained = run(
            problem.training,
            log=problem.log,
            state_path=here.resume / "state.pt",
            title=label,
            stopping=problem.stopping,
            measured_after=problem.measured_after,
            measure=problem.measure,
        )
        if here.main:
            problem.save(trained)

    return work
