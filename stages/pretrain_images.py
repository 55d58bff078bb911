"""Stage ``pretrain_images``: train one method of Table 1 from scratch, leaving evenly spaced checkpoints."""

import argparse
import shutil
from dataclasses import replace
from typing import get_args

import torch
from torch import nn

from pipeline.evaluation.image_grid import sample_grid
from pipeline.evaluation.image_models import FieldModel
from pipeline.orchestration.stage import in_processes, program, stage
from pipeline.settings.images import ImageMethod
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles
from pipeline.tasks.images import load_images
from pipeline.training.image_checkpoint import ImageRecord, build_image_model, save_image_model
from pipeline.training.image_methods import pretraining
from pipeline.training.images import ImageBatches
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import evenly_spaced, train
from pipeline.utils.hardware import use_threads
from pipeline.utils.seeding import Generators
from pipeline.utils.shipped import Shipment

_SHOWN_BY = "euler-16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--method", required=True, choices=get_args(ImageMethod))
    arguments = parser.parse_args()
    method: ImageMethod = arguments.method
    files = ImageFiles(arguments.scale, arguments.task)
    inputs = read_inputs("pretrain_images", arguments.scale, arguments.task)
    settings = inputs.settings.image_task(arguments.task)
    in_processes(settings.processes, "stages/pretrain_images.py")
    use_threads(settings.threads)

    label = f"pretrain_images-{arguments.scale}-{arguments.task}-{method}"
    deps, outs = [files.images], [files.pretrained(method), files.training_log(method)]
    shipment = Shipment(arguments.scale, arguments.task, f"pretrain_images-{method}", inputs.params, deps, outs)
    with stage(inputs, label, also={"method": method}, deps=deps, outs=outs) as here:
        if shipment.unpack(here.main):
            return
        record = ImageRecord(
            scale=arguments.scale,
            task=arguments.task,
            method=method,
            start=method,
            nfe=0,
            train_steps=0,
            updates=0.0,
            train_seed=settings.seed,
            net=settings.net,
            pretrain=settings.pretrain,
        )
        model = build_image_model(record)
        assert isinstance(model, FieldModel)
        generators = Generators(settings.seed, "pretrain images", method)
        recipe = here.settled(settings.pretrain)
        here.run.tag("precision", recipe.precision)
        objective = pretraining(method, model.field, recipe, generators)
        checkpoints = here.resume / "checkpoints"
        kept_along = method == "i_cfm" or settings.intermediate == "all"

        def keep(step: int, net: nn.Module) -> bool:
            model.field = net
            precision = recipe.precision if step else ""  # nothing is trained before the first step
            made = replace(record, train_steps=step, updates=float(step), precision=precision)
            if kept_along or step == recipe.steps:
                save_image_model(checkpoints / f"step-{step:07d}.safetensors", model, made)
            picture = here.resume / f"samples-{step:07d}.png"
            sample_grid(model, _SHOWN_BY, settings.shape, settings.seed, picture)
            here.run.artifact(picture, "samples")
            return True

        log = TrainingLog(here.resume / "log.jsonl", here.run)
        train(
            objective,
            ImageBatches(torch.from_numpy(load_images(files.images).images), settings.data.flip),
            recipe,
            generators,
            milestones=[0, *evenly_spaced(recipe.steps, recipe.checkpoints)],
            on_milestone=keep,
            log=log,
            state_path=here.resume / "state.pt",
            title=label,
        )
        if not here.main:
            return
        if files.pretrained(method).exists():
            shutil.rmtree(files.pretrained(method))
        shutil.copytree(checkpoints, files.pretrained(method))
        log.write_csv(files.training_log(method), scale=arguments.scale, task=arguments.task, method=method)
        shipment.note()


if __name__ == "__main__":
    program(main)
