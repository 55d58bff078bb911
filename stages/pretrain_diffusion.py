"""Stage ``pretrain_diffusion``: train the net of the rows ddpm and ddim, which predicts noise."""

import argparse
from dataclasses import replace

from pipeline.flow.action_diffusion import make_scheduler
from pipeline.orchestration.stage import in_processes, program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import TaskFiles
from pipeline.training.checkpoint import new_policy, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.diffusion import NoisePrediction
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import train
from pipeline.training.sight import from_scratch
from pipeline.utils.hardware import use_threads
from pipeline.utils.seeding import Generators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    files = TaskFiles(arguments.scale, arguments.task)
    inputs = read_inputs("pretrain_diffusion", arguments.scale, arguments.task)
    settings = inputs.settings.task(arguments.task)
    in_processes(settings.processes, "stages/pretrain_diffusion.py")
    use_threads(settings.threads)
    model = files.model("ddpm", 0)

    with stage(
        inputs,
        f"pretrain_diffusion-{arguments.scale}-{files.name}",
        deps=[files.prepared, files.frames],
        outs=[model, files.diffusion_log],
    ) as here:
        data = PreparedData.load(files.prepared)
        policy, record = new_policy(arguments.scale, arguments.task, "ddpm", settings, data)
        recipe = here.settled(settings.diffusion)
        here.run.tag("precision", recipe.precision)
        net, batches = from_scratch(policy, data, files.frames)
        generators = Generators(settings.seed, "pretrain", "diffusion")
        log = TrainingLog(here.resume / "log.jsonl", here.run)
        net = train(
            NoisePrediction(net, generators, make_scheduler()),
            batches,
            recipe,
            generators,
            log=log,
            state_path=here.resume / "state.pt",
            title=f"pretrain_diffusion {files.name}",
        )
        if not here.main:
            return
        record = replace(record, train_steps=recipe.steps, precision=recipe.precision)
        save_policy(model, policy.with_net(net), record)
        log.write_csv(files.diffusion_log, scale=arguments.scale, task=arguments.task)


if __name__ == "__main__":
    program(main)
