"""Stage ``finetune_image_residual``: train a net on the time after the base model's, the base frozen (resft_fm)."""

import argparse
from dataclasses import replace
from typing import cast

import torch

from pipeline.evaluation.image_models import ResidualModel
from pipeline.nets.residual import Residual
from pipeline.orchestration.stage import in_processes, program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles
from pipeline.tasks.images import load_images
from pipeline.training.finetuning import Training, run
from pipeline.training.image_checkpoint import build_image_model, load_image_model, save_image_model
from pipeline.training.image_methods import windows_of
from pipeline.training.images import ImageBatches
from pipeline.training.journal import TrainingLog
from pipeline.training.residual import residual_training
from pipeline.utils.hardware import use_threads
from pipeline.utils.seeding import Generators
from pipeline.utils.shipped import Shipment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    files = ImageFiles(arguments.scale, arguments.task)
    inputs = read_inputs("finetune_image_residual", arguments.scale, arguments.task)
    settings = inputs.settings.image_task(arguments.task)
    in_processes(settings.processes, "stages/finetune_image_residual.py")
    use_threads(settings.threads)
    recipe = settings.residual

    label = f"finetune_image_residual-{arguments.scale}-{arguments.task}"
    deps, outs = [files.base, files.images], [files.model("resft_fm", recipe.nfe), files.training_log("resft_fm")]
    shipment = Shipment(arguments.scale, arguments.task, "finetune_image_residual", inputs.params, deps, outs)
    with stage(inputs, label, deps=deps, outs=outs) as here:
        if shipment.unpack(here.main):
            return
        images = torch.from_numpy(load_images(files.images).images)
        base, base_record = load_image_model(files.base)
        training = here.settled(recipe)
        record = replace(
            base_record,
            method="resft_fm",
            nfe=recipe.nfe,
            train_steps=base_record.train_steps + recipe.steps,
            residual=recipe,
            precision=training.precision,
        )
        model = build_image_model(record)
        assert isinstance(model, ResidualModel)
        model.base.load_state_dict(base.state_dict())
        generators = Generators(settings.seed, "finetune image residual")
        objective, pairs = residual_training(
            cast(Residual, model.residual),
            model.base.field,
            training,
            recipe.nfe,
            generators,
            windows_of(images, recipe),
            keep=here.resume / "pairs.pt",
        )
        batches = pairs if recipe.solves_ahead else ImageBatches(images, settings.data.flip)
        log = TrainingLog(here.resume / "log.jsonl", here.run)
        net = run(Training(objective, batches, generators, training), here, label, log)
        if not here.main:
            return
        model.residual = net
        save_image_model(files.model("resft_fm", recipe.nfe), model, record)
        log.write_csv(files.training_log("resft_fm"), scale=arguments.scale, task=arguments.task, method="resft_fm")
        shipment.note()


if __name__ == "__main__":
    program(main)
