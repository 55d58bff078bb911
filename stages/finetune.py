"""Stage ``finetune``: train the base model on, by maximum likelihood (ft_fm) or flow matching (fm), at equal compute.

Both branch from the same checkpoint. ``ft_fm`` minimises the reconstruction loss through the N-step solve; ``fm`` goes
on with the flow-matching loss for as many updates as cost the same, so that the comparison is never with a model that
was trained for less.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import nn

from pipeline import config
from pipeline.config import FinetuneRecipe, PretrainSettings, TaskSettings
from pipeline.errors import UserError
from pipeline.evaluation.protocol import run_episodes, validation_seeds
from pipeline.evaluation.statistics import mean_interval, proportion_interval
from pipeline.flow.coupling import added_solves, make_coupling
from pipeline.flow.covariance import COVARIANCES
from pipeline.flow.path import PATHS
from pipeline.layout import TaskFiles
from pipeline.nets.lora import add_lora, merge_lora, trainable_parameters
from pipeline.seeding import Generators
from pipeline.stage import in_processes, program, stage
from pipeline.training.checkpoint import load_policy, require_architecture, round_weights, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.guard import Guard
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import Batches, Objective, evenly_spaced, train
from pipeline.training.mle import Reconstruction, equal_compute_steps
from pipeline.training.pretrain import FlowMatching


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--method", required=True, choices=["fm", "ft_fm"])
    parser.add_argument("--nfe", required=True, type=int)
    arguments = parser.parse_args()
    method, nfe = arguments.method, arguments.nfe
    files = TaskFiles(arguments.scale, arguments.task)
    settings = config.load().block(arguments.scale).task(arguments.task)
    in_processes(settings.processes, "stages/finetune.py")
    torch.set_num_threads(settings.threads)
    if f"nfe{nfe}" not in settings.finetune:
        raise UserError(f"--nfe: given {nfe}, allowed: {', '.join(k.removeprefix('nfe') for k in settings.finetune)}")
    recipe = settings.finetune[f"nfe{nfe}"]
    if method == "fm":
        recipe = equal_compute(recipe, settings.pretrain, nfe)

    label = f"finetune-{arguments.scale}-{arguments.task}-{method}-{nfe}"
    params = settings.model_dump(include={"seed", "threads", "processes", "pretrain", "select", "evaluation"})
    with stage(
        "stages/finetune.py",
        label,
        params=params | {"recipe": recipe.model_dump(), "method": method, "nfe": nfe},
        deps=[files.base, files.prepared],
        outs=[files.model(method, nfe), files.history(method, nfe)],
    ) as here:
        data = PreparedData.load(files.prepared)
        policy, base = load_policy(files.base)
        require_architecture(files.base, base, settings.data, settings.net)
        guard = Guard(policy, data, settings.seed)
        policy.solver = recipe.solver
        generators = Generators(settings.seed, "finetune", method, nfe)
        objective = make_objective(method, nfe, policy.net, settings, recipe, generators, data.action.shape[1:])
        here.run.tag("trainable_parameters", str(trainable_parameters(policy.net)))
        log = TrainingLog(here.resume / "log.jsonl", here.run)
        history = TrainingLog(here.resume / "history.jsonl", here.run)

        def look(step: int, net: nn.Module) -> bool:
            if step in history.rows:
                return True
            reading = guard.read(policy.with_net(net), nfe)
            if method == "ft_fm" and reading.spread_ratio < recipe.collapse_below:
                print(
                    f"warning: {label}: the samples are collapsing: at step {step} their spread is "
                    f"{reading.spread_ratio:.2f} of the base model's (collapse_below: {recipe.collapse_below})",
                    file=sys.stderr,
                )
                here.run.tag("collapsing", f"from step {step}")
            results = run_episodes(
                policy,
                arguments.task,
                settings.select.evaluation,
                nfe,
                validation_seeds(recipe.history_seeds),
                settings.evaluation,
                journal=here.resume / f"episodes-{step}.jsonl",
            )
            score = mean_interval(np.array([result.max_score for result in results]))
            success = proportion_interval(np.array([result.success for result in results]))
            logged = [log.rows[at]["loss"] for at in sorted(log.rows) if at <= step]
            history(
                {
                    "epoch": step * recipe.batch_size / len(data.action),
                    "max_score": score.mean,
                    "max_score_low": score.low,
                    "max_score_high": score.high,
                    "success": success.mean,
                    "success_low": success.low,
                    "success_high": success.high,
                    "n_seeds": len(results),
                    "loss": logged[-1] if logged else math.nan,
                    "spread_ratio": reading.spread_ratio,
                    "best_of_k": reading.diversity.best_of_k,
                    "reconstruction_error": reading.diversity.reconstruction_error,
                },
                step,
            )
            return True

        net = train(
            objective,
            Batches(data.condition, data.action),
            recipe,
            generators,
            milestones=[0, *evenly_spaced(recipe.steps, recipe.history_points)],
            on_milestone=look,
            log=log,
            state_path=here.resume / "state.pt",
            title=label,
        )
        if not here.main:
            return
        merge_lora(net)
        round_weights(net)  # models are stored in half the size; what is measured from here on is what is stored
        reading = guard.read(policy.with_net(net), nfe)
        record = replace(
            base,
            method=method,
            nfe=nfe,
            train_steps=base.train_steps + recipe.steps,
            solver=recipe.solver,
            figures={"spread_ratio": reading.spread_ratio, **asdict(reading.diversity)},
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


def equal_compute(recipe: FinetuneRecipe, pretrain: PretrainSettings, nfe: int) -> FinetuneRecipe:
    """The recipe of flow matching continued, as in pretraining, for the compute of ``recipe``."""
    kept = pretrain.model_dump(include={"weight_decay", "warmup", "clip", "ema_decay", "precision"})
    steps = equal_compute_steps(
        recipe.steps,
        nfe,
        added_solves(recipe.coupling, recipe.candidates, recipe.reflow_nfe / nfe),
        solver=recipe.solver,
        gradient=recipe.gradient,
        last_steps=recipe.last_steps or None,
        fm_term=recipe.fm_weight > 0,
    )
    return recipe.model_copy(update={**kept, "steps": steps, "lr": recipe.fm_lr})


def make_objective(
    method: str,
    nfe: int,
    net: nn.Module,
    settings: TaskSettings,
    recipe: FinetuneRecipe,
    generators: Generators,
    shape: Sequence[int],
) -> Objective:
    """What ``method`` minimises over ``net``, on data each of ``shape``; puts LoRA on ``net`` where asked for."""
    pretrain = settings.pretrain
    path = PATHS[pretrain.path](pretrain.sigma)
    if method == "ft_fm":
        coupling = make_coupling(
            recipe.coupling,
            recipe.candidates,
            regularization=recipe.regularization,
            condition_weight=recipe.condition_weight,
            typical_quantile=recipe.typical_quantile,
        )
        teacher_nfe = recipe.reflow_nfe if recipe.coupling == "reflow" else None
        objective = Reconstruction(
            net,
            coupling,
            nfe,
            generators,
            teacher_nfe=teacher_nfe,
            solver=recipe.solver,
            gradient=recipe.gradient,
            last_steps=recipe.last_steps or None,
            covariance=COVARIANCES[recipe.covariance](shape),
            fm_weight=recipe.fm_weight,
            path=path,
            energy_weight=recipe.energy_weight,
        )
        if recipe.lora_rank > 0:  # after the teacher was copied, which has no use for it
            add_lora(net, recipe.lora_rank, recipe.lora_alpha, generators["lora"])
        return objective
    coupling = make_coupling(
        pretrain.coupling, regularization=pretrain.regularization, condition_weight=pretrain.condition_weight
    )
    return FlowMatching(net, path, coupling, generators)


if __name__ == "__main__":
    program(main)
