"""Train one method of Table 1 from scratch on images, with evenly spaced checkpoints."""

from dataclasses import replace
from typing import cast

from torch import nn

from pipeline.evaluation.image_models import FieldModel
from pipeline.kinds.images import ImageProblem
from pipeline.settings.images import ImageMethod, ImageTask
from pipeline.settings.paths import ImageFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.training.finetuning import Trained, Training
from pipeline.training.image_checkpoint import ImageMetadata, build_image_model, save_image_model
from pipeline.training.image_methods import pretraining
from pipeline.training.job import Asked, Job
from pipeline.training.loop import evenly_spaced
from pipeline.training.problem import Workspace, trains
from pipeline.utils.seeding import Generators

_SHOWN_BY = "euler-16"


def job(asked: Asked, settings: ScaleSettings) -> Job:
    del settings
    files, method = ImageFiles(asked.scale, asked.task), asked.method
    return Job(
        f"pretrain_images-{asked.scale}-{asked.task}-{method}",
        deps=[files.images],
        outs=[files.pretrained(method), files.training_log(method)],
        also={"method": method},
        shipped=f"pretrain_images-{method}",
    )


class ImagePretraining(ImageProblem):
    """Training from random weights: DDPM, or flow matching with the path and coupling of a method."""

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        super().__init__(asked, settings, here, label)
        of_task = self.settings
        method = cast(ImageMethod, asked.method)
        self.metadata = ImageMetadata(
            scale=asked.scale,
            task=cast(ImageTask, asked.task),
            method=method,
            start=method,
            nfe=0,
            train_steps=0,
            updates=0.0,
            train_seed=of_task.seed,
            net=of_task.net,
            pretrain=of_task.pretrain,
        )
        model = build_image_model(self.metadata)
        assert isinstance(model, FieldModel)
        self.model = model
        generators, recipe = Generators(of_task.seed, "pretrain images", method), here.settled(of_task.pretrain)
        self.training = Training(pretraining(method, model.field, recipe, generators), self.batches, generators, recipe)
        self.measured_after = [0, *evenly_spaced(recipe.steps, recipe.checkpoints)]

    def measure(self, step: int, net: nn.Module) -> None:
        recipe, self.model.field = self.training.optimization, net
        precision = recipe.precision if step else ""  # before the first step, it is untrained
        made = replace(self.metadata, train_steps=step, updates=float(step), precision=precision)
        if self.asked.method == "i_cfm" or self.settings.intermediate == "all" or step == recipe.steps:
            save_image_model(self.checkpoint(step), self.model, made)
        self.show(self.model, _SHOWN_BY, step)

    def save(self, trained: Trained) -> None:
        asked, files = self.asked, self.files
        del trained  # it is the last checkpoint
        self.copy_checkpoints(files.pretrained(asked.method))
        self.log.write_csv(files.training_log(asked.method), scale=asked.scale, task=asked.task, method=asked.method)


work = trains(ImagePretraining)
