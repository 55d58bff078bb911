"""Train a residual field behind the frozen base model of images (resft_fm)."""

from dataclasses import replace
from typing import cast

from pipeline.evaluation.image_models import ResidualModel
from pipeline.kinds.images import ImageProblem
from pipeline.nets.residual import Residual
from pipeline.settings.paths import ImageFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.training.finetuning import Trained, Training
from pipeline.training.image_checkpoint import build_image_model, load_image_model, save_image_model
from pipeline.training.job import Asked, Job
from pipeline.training.problem import Workspace, trains
from pipeline.training.residual import residual_training
from pipeline.utils.seeding import Generators


def job(asked: Asked, settings: ScaleSettings) -> Job:
    files, recipe = ImageFiles(asked.scale, asked.task), settings.image_task(asked.task).residual
    return Job(
        f"finetune_image_residual-{asked.scale}-{asked.task}",
        deps=[files.base, files.images],
        outs=[files.model("resft_fm", recipe.nfe), files.training_log("resft_fm")],
        shipped="finetune_image_residual",
    )


class ImageResidual(ImageProblem):
    """Training of a residual behind the base model."""

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        super().__init__(asked, settings, here, label)
        of_task = self.settings
        base, base_metadata = load_image_model(self.files.base)
        recipe = here.settled(of_task.residual)
        self.metadata = replace(
            base_metadata,
            method="resft_fm",
            nfe=recipe.nfe,
            train_steps=base_metadata.train_steps + recipe.steps,
            residual=of_task.residual,
            precision=recipe.precision,
        )
        model = build_image_model(self.metadata)
        assert isinstance(model, ResidualModel)
        model.base.load_state_dict(base.state_dict())
        self.model = model
        generators = Generators(of_task.seed, "finetune image residual")
        objective, pairs = residual_training(
            cast(Residual, model.residual),
            model.base.field,
            recipe,
            recipe.nfe,
            generators,
            self.windows(recipe),
            keep=here.resume / "pairs.pt",
        )
        self.training = Training(objective, pairs if recipe.solves_ahead else self.batches, generators, recipe)

    def save(self, trained: Trained) -> None:
        asked, files = self.asked, self.files
        self.model.residual = trained.net
        save_image_model(files.model("resft_fm", self.metadata.nfe), self.model, self.metadata)
        self.log.write_csv(files.training_log("resft_fm"), scale=asked.scale, task=asked.task, method="resft_fm")


work = trains(ImageResidual)
