"""Make a cell of a study: train a method from one base model, choose a checkpoint, roll it out on test seeds."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from pipeline.evaluation.rollouts import EpisodeResult
from pipeline.evaluation.seeds import test_seeds, validation_seeds
from pipeline.settings.schema import TaskSettings
from pipeline.training.checkpoint import CheckpointMetadata, LoadedPolicy, load_policy, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.diversity_monitor import DiversityMonitor
from pipeline.training.finetuning import Training, checkpoint_file, metrics_of, run
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import evenly_spaced
from pipeline.training.problem import Workspace
from pipeline.training.selection import mean_scores, roll_out
from pipeline.utils.errors import UserError


def load_base(path: Path, scale: str, task: str, train_seed: int) -> LoadedPolicy:
    """Load the pretrained model that cells start from.

    Raises:
        UserError: the file is missing, or holds another model.
    """
    if not path.exists():
        raise UserError(f"{path}: not found; `python -m stages.study base --help` says how a base model is made")
    policy, metadata = load_policy(path)
    have = (metadata.scale, metadata.task, metadata.method, metadata.train_seed, metadata.nfe)
    want = (scale, task, "fm", train_seed, 0)
    if have != want:
        raise UserError(f"{path}: a model of (scale, task, method, training seed, NFE) {have}, allowed: {want}")
    return policy, metadata


@dataclass(frozen=True)
class Choice:
    """Checkpoint at a temperature, with its scores on validation seeds."""

    model: Path
    temperature: float
    max_score: float
    success: float

    @property
    def value(self) -> float:
        """Return the mean of score and success, so that partial and full success both count."""
        return (self.max_score + self.success) / 2


@dataclass(frozen=True)
class Outcome:
    """Result of a cell at one number of evaluations.

    Attributes:
        model: the chosen file. metadata: its metadata, with the measured diversity.
        results: episodes on the test seeds. beside: further metrics.
    """

    nfe: int
    model: Path
    metadata: CheckpointMetadata
    results: Sequence[EpisodeResult]
    beside: Mapping[str, float]


class Cell(ABC):
    """Method of a study with one base model; ``fm`` is that model itself and trains nothing.

    Attributes:
        numbers: numbers of function evaluations of its rollouts.
        settings: settings of the task, with the training seed of the base model.
        base: the base model and its metadata; training changes its net in place. base_file: its file.
    """

    def __init__(
        self,
        method: str,
        numbers: Sequence[int],
        base_file: Path,
        base: LoadedPolicy,
        settings: TaskSettings,
    ) -> None:
        self.method = method
        self.numbers = numbers
        self.base_file = base_file
        self.base = base
        self.settings = settings

    @property
    @abstractmethod
    def checkpoints(self) -> int:
        """Return the number of checkpoints to choose from."""

    @abstractmethod
    def training(self, data: PreparedData, settings: TaskSettings, keep: Path) -> Training:
        """Return the training. ``settings`` have no ``precision: auto``; the file ``keep`` holds solves made ahead."""

    @abstractmethod
    def load(self, model: Path, nfe: int) -> LoadedPolicy:
        """Load a checkpoint as a flow policy at ``nfe`` evaluations."""

    @abstractmethod
    def best(self, models: Sequence[Path], nfe: int, folder: Path) -> Choice:
        """Choose a checkpoint on validation seeds. ``folder`` keeps finished episodes for a resume."""

    @abstractmethod
    def beside(self, chosen: Choice) -> Mapping[str, float]:
        """Return metrics of the row beside its scores."""

    def judged(self, model: Path, nfe: int, temperature: float, seeds: int, folder: Path) -> Choice:
        """Roll a checkpoint out on the first ``seeds`` validation seeds."""
        policy, metadata = self.load(model, nfe)
        policy.temperature = temperature
        journal = folder / f"validation-nfe{nfe}-{model.stem}-{temperature:g}.jsonl"
        results = roll_out(policy, metadata.task, self.settings, nfe, validation_seeds(seeds), journal)
        return Choice(model, temperature, **mean_scores(results))

    def trained(self, training: Training, here: Workspace, title: str) -> list[Path]:
        """Train resumably; return evenly spaced checkpoints, with weights as models are stored."""
        policy, metadata = self.base
        precision = training.optimization.precision
        steps = evenly_spaced(training.optimization.steps, self.checkpoints)
        paths = {step: checkpoint_file(here.resume, step) for step in steps}

        def keep(step: int, net: nn.Module) -> None:
            done = training.steps_before + step
            made = replace(metadata, method=self.method, train_steps=done, metrics={}, precision=precision)
            save_policy(paths[step], policy.with_net(net), made, half=True)

        here.run.tag("precision", precision)
        log = TrainingLog(here.resume / "log.jsonl", here.run)
        run(training, log=log, state_path=here.resume / "state.pt", title=title, measured_after=steps, measure=keep)
        return list(paths.values())


def outcomes(cell: Cell, prepared: Path, here: Workspace, title: str) -> Iterator[Outcome]:
    """Train the cell, and roll out its best checkpoint at each number of evaluations.

    Args:
        prepared: the task's data. title: of the run.
    """
    data, settings = PreparedData.load(prepared), cell.settings
    monitor, models = DiversityMonitor(cell.base[0], data, settings.seed), [cell.base_file]
    if cell.method != "fm":
        training = cell.training(data, here.settled(settings), here.resume / "pairs.pt")
        models = cell.trained(training, here, title)
    for nfe in cell.numbers:
        chosen = cell.best(models, nfe, here.resume)
        policy, metadata = cell.load(chosen.model, nfe)
        policy.temperature = chosen.temperature
        measured = metrics_of(monitor.measure(policy, nfe))
        journal = here.resume / f"test-nfe{nfe}-{chosen.model.stem}-{chosen.temperature:g}.jsonl"
        results = roll_out(policy, metadata.task, settings, nfe, test_seeds(settings.evaluation.n_seeds), journal)
        made = replace(metadata, nfe=nfe, method=cell.method, temperature=chosen.temperature, metrics=measured)
        yield Outcome(nfe, chosen.model, made, results, cell.beside(chosen))
