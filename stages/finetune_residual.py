"""Stage ``finetune_residual``: a residual field behind the frozen base model, trained by maximum likelihood.

The model's solve is the base's on [0, 1] and the residual's on [1, end]; loss (6) is taken at its end, and only the
residual is trained. What is saved has the residual's matrices as plain numbers, as they run and are certified.
"""

import argparse
from dataclasses import replace
from typing import cast

from torch import nn

from pipeline.nets.lora import trainable_parameters
from pipeline.nets.residual import Residual
from pipeline.orchestration.stage import in_processes, program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import TaskFiles, split_row
from pipeline.training.checkpoint import load_policy, require_architecture, round_weights
from pipeline.training.data import PreparedData
from pipeline.training.finetuning import Supervisor, Training, figures_of, run
from pipeline.training.guard import Guard, Reading
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import Batches
from pipeline.training.residual import residual_training
from pipeline.training.residual_checkpoint import make_residual_policy, save_residual_policy
from pipeline.training.sight import as_seen
from pipeline.utils.hardware import use_threads
from pipeline.utils.seeding import Generators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--row", required=True, help="method and NFE, such as resft_fm-nfe16")
    arguments = parser.parse_args()
    files = TaskFiles(arguments.scale, arguments.task)
    inputs = read_inputs("finetune_residual", arguments.scale, arguments.task, arguments.row)
    settings = inputs.settings.task(arguments.task)
    in_processes(settings.processes, "stages/finetune_residual.py")
    use_threads(settings.threads)
    recipe = settings.residual_recipe(arguments.row)
    method, nfe = split_row(arguments.row)
    model = files.model(method, nfe)

    label = f"finetune_residual-{arguments.scale}-{arguments.task}-{arguments.row}"
    with stage(
        inputs,
        label,
        deps=[files.base, files.prepared, files.frames],
        outs=[model, files.residual_log(arguments.row)],
    ) as here:
        base, record = load_policy(files.base)
        require_architecture(files.base, record, settings.data, settings.net)
        prepared = PreparedData.load(files.prepared)
        data = as_seen(base, prepared, files.frames, keep=here.resume / "features")
        guard = Guard(base, data, settings.seed)
        base.temperature = recipe.temperature
        round_weights(base.net)  # models are stored in half the size; the residual is to correct what is stored
        policy = make_residual_policy(base, recipe, settings.seed)
        generators = Generators(settings.seed, "finetune_residual", arguments.row)
        training = here.settled(recipe)
        objective, batches = residual_training(
            policy.residual,
            base.net,
            training,
            nfe,
            generators,
            Batches(data.condition, data.action),
            keep=here.resume / "pairs.pt",
        )
        here.run.tag("trainable_parameters", str(trainable_parameters(policy.residual)))

        def read(residual: nn.Module) -> Reading:
            policy.residual = cast(Residual, residual)
            return guard.read(policy.to(next(residual.parameters()).device), nfe)

        supervisor = Supervisor(read, policy.residual, recipe, here, label)

        def look(step: int, residual: nn.Module) -> bool:
            supervisor.look(step, residual)
            return supervisor.healthy

        milestones = [*range(0, recipe.steps, recipe.guard_every), recipe.steps]
        log = TrainingLog(here.resume / "log.jsonl", here.run)
        residual = run(Training(objective, batches, generators, training), here, label, log, milestones, look)
        if not here.main:
            return
        steps = supervisor.settle(residual, recipe.steps)
        reading = read(cast(Residual, residual).fixed())  # what is measured is what is stored
        made = replace(
            record,
            method=method,
            nfe=nfe,
            temperature=recipe.temperature,
            train_steps=record.train_steps + steps,
            figures=figures_of(reading),
            precision=training.precision,
        )
        save_residual_policy(model, policy, made, recipe)
        log.write_csv(
            files.residual_log(arguments.row),
            scale=arguments.scale,
            task=arguments.task,
            dataset=settings.data.dataset,
            method=method,
            nfe=nfe,
            train_seed=settings.seed,
        )
        here.run.artifact(files.residual_log(arguments.row))


if __name__ == "__main__":
    program(main)
