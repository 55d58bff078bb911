"""Stage ``finetune``: train the base model on, by maximum likelihood (ft_fm) or flow matching (fm), at equal compute.

Both branch from the same checkpoint. ``ft_fm`` minimises the reconstruction loss through the N-step solve; ``fm`` goes
on with the flow-matching loss for as many updates as cost the same, so that the comparison is never with a model that
was trained for less.
"""

import argparse
import math
from dataclasses import replace

import numpy as np
from torch import nn

from pipeline.evaluation.protocol import evaluation_of, run_episodes, validation_seeds
from pipeline.evaluation.statistics import mean_interval, proportion_interval
from pipeline.nets.lora import merge_lora, trainable_parameters
from pipeline.orchestration.stage import in_processes, program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import TaskFiles
from pipeline.training.checkpoint import load_policy, require_architecture, round_weights, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.finetuning import Supervisor, Training, figures_of, run
from pipeline.training.guard import Guard, Reading
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import Batches, Objective, evenly_spaced
from pipeline.training.recipe import equal_compute, flow_matching, maximum_likelihood
from pipeline.training.sight import as_seen
from pipeline.utils.hardware import use_threads
from pipeline.utils.seeding import Generators

SCORES = ("max_score", "max_score_low", "max_score_high", "success", "success_low", "success_high")
NO_ROLLOUTS = {**dict.fromkeys(SCORES, math.nan), "n_seeds": 0}
"""Of an offline task, whose history is the guard's readings on held-out episodes alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--method", required=True, choices=["fm", "ft_fm"])
    parser.add_argument("--nfe", required=True, type=int)
    arguments = parser.parse_args()
    method, nfe = arguments.method, arguments.nfe
    files = TaskFiles(arguments.scale, arguments.task)
    inputs = read_inputs("finetune", arguments.scale, arguments.task, nfe)
    settings = inputs.settings.task(arguments.task)
    in_processes(settings.processes, "stages/finetune.py")
    use_threads(settings.threads)
    recipe, task = settings.finetune[f"nfe{nfe}"], settings.load_task()

    label = f"finetune-{arguments.scale}-{arguments.task}-{method}-{nfe}"
    with stage(
        inputs,
        label,
        also={"method": method},
        deps=[files.base, files.prepared, files.frames],
        outs=[files.model(method, nfe), files.history(method, nfe)],
    ) as here:
        policy, base = load_policy(files.base)
        require_architecture(files.base, base, settings.data, settings.net)
        prepared = PreparedData.load(files.prepared)
        data = as_seen(policy, prepared, files.frames, keep=here.resume / "features")
        guard = Guard(policy, data, settings.seed)
        policy.solver, policy.temperature = recipe.solver, recipe.temperature
        generators = Generators(settings.seed, "finetune", method, nfe)
        windows = Batches(data.condition, data.action)
        pretrain, recipe = here.settled(settings.pretrain), here.settled(recipe)
        objective: Objective
        if method == "fm":
            recipe = equal_compute(recipe, pretrain, nfe, len(data.action))
            objective, batches = flow_matching(policy.net, pretrain, generators), windows
        else:
            objective, batches = maximum_likelihood(
                policy.net, recipe, nfe, pretrain, generators, windows, keep=here.resume / "pairs.pt"
            )
        here.run.tag("trainable_parameters", str(trainable_parameters(policy.net)))
        log = TrainingLog(here.resume / "log.jsonl", here.run)
        history = TrainingLog(here.resume / "history.jsonl", here.run)
        history_steps = [0, *evenly_spaced(recipe.steps, recipe.history_points)]
        guard_steps = range(0, recipe.steps, recipe.guard_every) if method == "ft_fm" else ()

        def read(net: nn.Module) -> Reading:
            return guard.read(policy.with_net(net), nfe)

        supervisor = Supervisor(read, policy.net, recipe, here, label, watches=method == "ft_fm")

        def look(step: int, net: nn.Module) -> bool:
            reading = supervisor.look(step, net)
            if step in history_steps and step not in history.rows:
                add_to_history(step, net, reading)
            return supervisor.healthy

        def rolled_out(step: int, net: nn.Module) -> dict[str, float]:
            results = run_episodes(
                policy.with_net(net),
                evaluation_of(task, arguments.task, settings.select.evaluation, settings.evaluation),
                nfe,
                validation_seeds(recipe.history_seeds),
                settings.evaluation,
                journal=here.resume / f"episodes-{step}.jsonl",
            )
            score = mean_interval(np.array([result.max_score for result in results]))
            success = proportion_interval(np.array([result.success for result in results]))
            numbers = (score.mean, score.low, score.high, success.mean, success.low, success.high, len(results))
            return dict(zip(NO_ROLLOUTS, numbers, strict=True))

        def add_to_history(step: int, net: nn.Module, reading: Reading) -> None:
            logged = [log.rows[at]["loss"] for at in sorted(log.rows) if at <= step]
            history(
                {
                    "epoch": step * recipe.batch_size / len(data.action),
                    **(NO_ROLLOUTS if task.offline else rolled_out(step, net)),
                    "loss": logged[-1] if logged else math.nan,
                    "spread_ratio": reading.spread_ratio,
                    "best_of_k": reading.diversity.best_of_k,
                    "reconstruction_error": reading.diversity.reconstruction_error,
                },
                step,
            )

        training = Training(objective, batches, generators, recipe)
        net = run(training, here, label, log, [*history_steps, *guard_steps], look)
        if not here.main:
            return
        steps = supervisor.settle(net, recipe.steps)
        merge_lora(net)
        round_weights(net)  # models are stored in half the size; what is measured from here on is what is stored
        reading = guard.read(policy.with_net(net), nfe)
        record = replace(
            base,
            method=method,
            nfe=nfe,
            train_steps=base.train_steps + steps,
            solver=recipe.solver,
            temperature=recipe.temperature,
            figures=figures_of(reading),
            precision=recipe.precision,
        )
        save_policy(files.model(method, nfe), policy, record, half=True)
        history.write_csv(
            files.history(method, nfe),
            scale=arguments.scale,
            task=arguments.task,
            dataset=settings.data.dataset,
            method=method,
            nfe=nfe,
            train_seed=settings.seed,
        )
        here.run.artifact(files.history(method, nfe))


if __name__ == "__main__":
    program(main)
