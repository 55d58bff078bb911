"""Load the images of a task for the stages that train on them."""

import torch

from pipeline.evaluation.image_grid import sample_grid
from pipeline.evaluation.image_models import ImageModel
from pipeline.settings.blocks import CoupledUpdates
from pipeline.settings.paths import ImageFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.tasks.images import load_images
from pipeline.training.image_methods import windows_of
from pipeline.training.images import ImageBatches
from pipeline.training.job import Asked
from pipeline.training.loop import Batches, BatchSource
from pipeline.training.problem import Problem, Workspace


class ImageProblem(Problem):
    """Training on ``images`` (N, C, H, W), uint8; ``batches`` are random batches of them."""

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        super().__init__(asked, settings, here, label)
        self.settings = settings.image_task(asked.task)
        self.files = ImageFiles(asked.scale, asked.task)
        self.images = torch.from_numpy(load_images(self.files.images).images)
        self.batches: BatchSource = ImageBatches(self.images, self.settings.data.flip)

    def windows(self, recipe: CoupledUpdates) -> Batches:
        """Return the images for the couplings of ``recipe``, see ``windows_of``."""
        return windows_of(self.images, recipe)

    def show(self, model: ImageModel, solver: str, step: int) -> None:
        """Keep a picture of samples after ``step`` updates in the run."""
        picture = self.here.resume / f"samples-{step:07d}.png"
        sample_grid(model, solver, self.settings.shape, self.settings.seed, picture)
        self.here.run.artifact(picture, "samples")
