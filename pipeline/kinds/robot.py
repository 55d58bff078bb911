"""Load the base model and the data of a robot task for the stages that fine-tune it."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.settings.paths import TaskFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.training.checkpoint import load_policy, require_architecture
from pipeline.training.data import PreparedData
from pipeline.training.diversity_monitor import DiversityMonitor
from pipeline.training.image_conditioning import as_seen
from pipeline.training.job import Asked
from pipeline.training.loop import Batches
from pipeline.training.problem import Problem, Workspace


def read_by(asked: Asked) -> list[Path]:
    """List the files that every fine-tuning of the task reads."""
    files = TaskFiles(asked.scale, asked.task)
    return [files.base, files.prepared, files.frames]


class RobotProblem(Problem):
    """Training that continues from the base model.

    Attributes:
        policy, base: the base model and its metadata. data: conditions as it encodes them.
        monitor: compares the diversity of nets with the base model's.
    """

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        """Load the base model and the data.

        Raises:
            UserError: the base model is missing, or was made with other settings.
        """
        super().__init__(asked, settings, here, label)
        self.settings = of_task = settings.task(asked.task)
        self.files = files = TaskFiles(asked.scale, asked.task)
        self.policy, self.base = load_policy(files.base)
        require_architecture(files.base, self.base, of_task.data, of_task.net)
        prepared = PreparedData.load(files.prepared)
        self.data = as_seen(self.policy, prepared, files.frames, keep=here.resume / "features")
        self.windows = Batches(self.data.condition, self.data.action)
        self.monitor = DiversityMonitor(self.policy, self.data, of_task.seed)

    @property
    def constants(self) -> Mapping[str, object]:
        """Return the first columns of each row of its history."""
        asked, settings = self.asked, self.settings
        return {
            "scale": asked.scale,
            "task": asked.task,
            "dataset": settings.data.dataset,
            "method": asked.method,
            "nfe": asked.nfe,
            "train_seed": settings.seed,
        }
