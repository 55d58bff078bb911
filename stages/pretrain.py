"""Stage ``pretrain``: train a velocity field from scratch by flow matching, leaving evenly spaced checkpoints."""

import argparse
import shutil
from dataclasses import replace

from torch import nn

from pipeline.flow.coupling import make_coupling
from pipeline.flow.path import PATHS
from pipeline.orchestration.stage import in_processes, program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import TaskFiles
from pipeline.training.checkpoint import new_policy, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import evenly_spaced, train
from pipeline.training.pretrain import FlowMatching
from pipeline.training.sight import from_scratch
from pipeline.utils.hardware import use_threads
from pipeline.utils.seeding import Generators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--replica", type=int, help="train with this seed instead, beside the one in params.yaml")
    arguments = parser.parse_args()
    files = TaskFiles(arguments.scale, arguments.task, arguments.replica)
    inputs = read_inputs("pretrain", arguments.scale, arguments.task)
    settings = inputs.settings.task(arguments.task).replica(arguments.replica)
    in_processes(settings.processes, "stages/pretrain.py")
    use_threads(settings.threads)

    with stage(
        inputs,
        f"pretrain-{arguments.scale}-{files.name}",
        also={"seed": settings.seed},
        deps=[files.prepared, files.frames],
        outs=[files.pretrained, files.pretrain_log],
    ) as here:
        data = PreparedData.load(files.prepared)
        policy, record = new_policy(arguments.scale, arguments.task, "fm", settings, data)
        generators = Generators(settings.seed, "pretrain")
        recipe = here.settled(settings.pretrain)
        here.run.tag("precision", recipe.precision)
        coupling = make_coupling(
            recipe.coupling, regularization=recipe.regularization, condition_weight=recipe.condition_weight
        )
        net, batches = from_scratch(policy, data, files.frames)
        objective = FlowMatching(net, PATHS[recipe.path](recipe.sigma), coupling, generators)
        checkpoints = here.resume / "checkpoints"

        def keep(step: int, net: nn.Module) -> bool:
            path = checkpoints / f"step-{step:07d}.safetensors"
            save_policy(path, policy.with_net(net), replace(record, train_steps=step, precision=recipe.precision))
            return True

        log = TrainingLog(here.resume / "log.jsonl", here.run)
        train(
            objective,
            batches,
            recipe,
            generators,
            milestones=evenly_spaced(recipe.steps, recipe.checkpoints),
            on_milestone=keep,
            log=log,
            state_path=here.resume / "state.pt",
            title=f"pretrain {files.name}",
        )
        if not here.main:
            return
        if files.pretrained.exists():
            shutil.rmtree(files.pretrained)
        shutil.copytree(checkpoints, files.pretrained)
        log.write_csv(files.pretrain_log, scale=arguments.scale, task=arguments.task)


if __name__ == "__main__":
    program(main)
