"""Stage ``finetune_images``: train the base model on by maximum likelihood (ft_fm), through the solve of one NFE.

It has the compute that flow matching has after the selected checkpoint: i_cfm's last checkpoint has cost as much.
"""

import argparse
from dataclasses import replace

import torch
from torch import nn

from pipeline.evaluation.image_grid import sample_grid
from pipeline.evaluation.image_models import FlowModel
from pipeline.nets.lora import merge_lora
from pipeline.orchestration.stage import in_processes, program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ImageFiles
from pipeline.tasks.images import load_images
from pipeline.training.finetuning import Training, run
from pipeline.training.image_checkpoint import load_image_model, save_image_model
from pipeline.training.image_judge import make_judge, summary
from pipeline.training.image_methods import windows_of
from pipeline.training.images import ImageBatches
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import evenly_spaced
from pipeline.training.recipe import maximum_likelihood, within_budget
from pipeline.utils.hardware import use_threads
from pipeline.utils.seeding import Generators
from pipeline.utils.shipped import Shipment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--nfe", required=True, type=int)
    arguments = parser.parse_args()
    nfe = arguments.nfe
    files = ImageFiles(arguments.scale, arguments.task)
    inputs = read_inputs("finetune_images", arguments.scale, arguments.task, nfe)
    settings = inputs.settings.image_task(arguments.task)
    in_processes(settings.processes, "stages/finetune_images.py")
    use_threads(settings.threads)

    label = f"finetune_images-{arguments.scale}-{arguments.task}-{nfe}"
    deps, outs = [files.base, files.images, files.extractor], [files.model("ft_fm", nfe), files.history("ft_fm", nfe)]
    shipment = Shipment(arguments.scale, arguments.task, f"finetune_images-nfe{nfe}", inputs.params, deps, outs)
    with stage(inputs, label, deps=deps, outs=outs) as here:
        if shipment.unpack(here.main):
            return
        images = torch.from_numpy(load_images(files.images).images)
        model, base = load_image_model(files.base)
        assert isinstance(model, FlowModel)
        matching = settings.pretrain.matching()
        compute = settings.pretrain.steps - base.train_steps
        recipe = here.settled(settings.finetune[f"nfe{nfe}"].recipe())
        recipe = within_budget(recipe, nfe, compute, matching, len(images))
        generators = Generators(settings.seed, "finetune images", nfe)
        objective, pairs = maximum_likelihood(
            model.field, recipe, nfe, matching, generators, windows_of(images, recipe), keep=here.resume / "pairs.pt"
        )
        judge = make_judge(files, settings) if here.main else None
        history = TrainingLog(here.resume / "history.jsonl", here.run)
        spent = compute / recipe.steps  # of each step, in flow-matching updates, solves made ahead shared out

        def look(step: int, net: nn.Module) -> bool:
            if step not in history.rows:
                history({"updates": base.updates + spent * step, **measure(step, net)}, step)
            return True

        def measure(step: int, net: nn.Module) -> dict[str, float]:
            assert judge
            trained, model.field = model.field, net
            rule, keep = settings.select, here.resume / f"distances-{step}"
            found = judge.measure(model, f"euler-{nfe}", rule.n_samples, rule.seeds(), keep, f"step {step}")
            picture = here.resume / f"samples-{step:07d}.png"
            sample_grid(model, f"euler-{nfe}", settings.shape, settings.seed, picture)
            here.run.artifact(picture, "samples")
            model.field = trained
            return summary(found)

        batches = pairs if recipe.solves_ahead else ImageBatches(images, settings.data.flip)
        milestones = [0, *evenly_spaced(recipe.steps, settings.finetune[f"nfe{nfe}"].history_points)]
        log = TrainingLog(here.resume / "log.jsonl", here.run)
        net = run(Training(objective, batches, generators, recipe), here, label, log, milestones, look)
        if not here.main:
            return
        merge_lora(net)
        model.field = net
        record = replace(
            base,
            method="ft_fm",
            nfe=nfe,
            train_steps=base.train_steps + recipe.steps,
            updates=base.updates + compute,
            precision=recipe.precision,
        )
        save_image_model(files.model("ft_fm", nfe), model, record)
        history.write_csv(
            files.history("ft_fm", nfe),
            scale=arguments.scale,
            dataset=settings.data.dataset,
            method="ft_fm",
            nfe=nfe,
            train_seed=settings.seed,
            features=settings.fid.features,
            n_samples=settings.select.n_samples,
            sampling_seeds=settings.select.sampling_seeds,
            selected=False,
        )
        here.run.artifact(files.history("ft_fm", nfe))
        shipment.note()


if __name__ == "__main__":
    program(main)
