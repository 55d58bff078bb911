"""How the rows of the coupling study are trained, each for the same compute, and which checkpoint of a row is taken."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.protocol import evaluation_of, run_episodes, validation_seeds
from pipeline.settings.schema import StudySettings, TaskSettings
from pipeline.training.checkpoint import Record, build_policy, load_policy, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.finetuning import Training
from pipeline.training.journal import Sink, TrainingLog
from pipeline.training.loop import Batches, evenly_spaced, train
from pipeline.training.one_step_baselines import MinimalIterative, MinimalIterativeField, Regression, RegressionField
from pipeline.training.recipe import fallback_share, flow_matching, maximum_likelihood, within_budget
from pipeline.training.selection import Candidate, Selection, select
from pipeline.utils.errors import UserError
from pipeline.utils.precision import autocast
from pipeline.utils.seeding import Generators
from pipeline.utils.timing import median_ms

OUTSIDERS: dict[str, Callable[[nn.Module], nn.Module]] = {"regression": RegressionField, "mip": MinimalIterativeField}
"""What makes a velocity field of the net of a policy that is no flow."""

_EVALUATIONS = {"regression": 1, "mip": 2}  # of the net in an update; one of flow matching has one
_TIMED_UPDATES = 20


def load_base(path: Path, scale: str, task: str, train_seed: int) -> tuple[FlowPolicy, Record]:
    """The pretrained model that rows start from.

    Raises:
        UserError: there is none, or it is another model.
    """
    if not path.exists():
        raise UserError(f"{path}: not found; stages/study_base.py says how a base model is made")
    policy, record = load_policy(path)
    have = (record.scale, record.task, record.method, record.train_seed, record.nfe)
    want = (scale, task, "fm", train_seed, 0)
    if have != want:
        raise UserError(f"{path}: a model of (scale, task, method, training seed, NFE) {have}, allowed: {want}")
    return policy, record


def make_training(
    row: str,
    numbers: Sequence[int],
    base: tuple[FlowPolicy, Record],
    data: PreparedData,
    settings: TaskSettings,
    study: StudySettings,
    keep: Path,
) -> Training:
    """How ``row`` is trained within the study's budget.

    Args:
        row: ``fm_continued``, an outsider, or a coupling. numbers: of function evaluations; one for a coupling.
        base: the model to start from, whose net is trained in place. keep: file of solves made ahead.

    Raises:
        UserError: a coupling and several numbers of evaluations, one that the study's settings do not have, or a budget
            below what is solved ahead.
    """
    policy, record = base
    pretrain = settings.pretrain
    windows = Batches(data.condition, data.action)
    generators = Generators(settings.seed, "study", row, *numbers)
    if row == "fm_continued":
        optimization = pretrain.model_copy(update={"steps": study.budget, "lr": study.fm_lr})
        objective = flow_matching(policy.net, pretrain, generators)
        return Training(objective, windows, generators, optimization, record.train_steps)
    if row in OUTSIDERS:
        net = build_policy(record).net
        outsider = Regression(net) if row == "regression" else MinimalIterative(net, generators)
        steps = (record.train_steps + study.budget) // _EVALUATIONS[row]
        return Training(outsider, windows, generators, pretrain.model_copy(update={"steps": steps}), 0)
    if len(numbers) > 1:
        raise UserError(f"--nfe: given {list(numbers)}, allowed for {row}: one number, which it is trained for")
    (nfe,) = numbers
    recipe = study.recipe(row, nfe, settings.finetune["nfe1"])
    likelihood, batches = maximum_likelihood(policy.net, recipe, nfe, pretrain, generators, windows, keep=keep)
    share = fallback_share(recipe, batches)
    recipe = within_budget(recipe, nfe, study.budget, pretrain, len(data.action), share)
    return Training(likelihood, batches, generators, recipe, record.train_steps)


def train_row(
    training: Training,
    row: str,
    base: tuple[FlowPolicy, Record],
    checkpoints: int,
    folder: Path,
    sink: Sink,
    title: str,
) -> list[Path]:
    """Train, resumably in ``folder``; return evenly spaced checkpoints, in the precision in which models are stored."""
    policy, record = base
    steps = evenly_spaced(training.optimization.steps, checkpoints)
    paths = {step: folder / "checkpoints" / f"step-{step:07d}.safetensors" for step in steps}

    def keep(step: int, net: nn.Module) -> bool:
        of_step = replace(
            record,
            method=row,
            train_steps=training.steps_before + step,
            figures={},
            precision=training.optimization.precision,
        )
        save_policy(paths[step], policy.with_net(net), of_step, half=True)
        return True

    train(
        training.objective,
        training.batches,
        training.optimization,
        training.generators,
        milestones=steps,
        on_milestone=keep,
        log=TrainingLog(folder / "log.jsonl", sink),
        state_path=folder / "state.pt",
        title=title,
    )
    return list(paths.values())


def load_row(model: Path, row: str) -> tuple[FlowPolicy, Record]:
    """The policy of a checkpoint of ``row``; an outsider's net as the field that makes a flow of it."""
    policy, record = load_policy(model)
    return policy.with_net(OUTSIDERS[row](policy.net)) if row in OUTSIDERS else policy, record


def choose(models: list[Path], row: str, nfe: int, settings: TaskSettings, seeds: int, folder: Path) -> Selection:
    """The checkpoint with the highest mean max score on so many validation seeds, at ``nfe`` evaluations.

    Args:
        folder: keeps finished episodes for a resume.
    """

    def judge(path: Path) -> Candidate:
        policy, record = load_row(path, row)
        results = run_episodes(
            policy,
            evaluation_of(settings.load_task(), record.task, settings.select.evaluation, settings.evaluation),
            nfe,
            validation_seeds(seeds),
            settings.evaluation,
            journal=folder / f"validation-nfe{nfe}-{path.stem}.jsonl",
        )
        figures = {
            "max_score": float(np.mean([result.max_score for result in results])),
            "success": float(np.mean([result.success for result in results])),
        }
        return Candidate(path.name, record.train_steps, figures["max_score"], figures)

    return select(models, judge, f"highest mean max score of {seeds} validation episodes")


def measure_update(training: Training) -> float:
    """Median time of an update's forward and backward pass, pairing included, in milliseconds."""
    objective, generator = training.objective, torch.Generator().manual_seed(0)
    device = next(objective.parameters()).device.type

    def update(condition: Tensor, data: Tensor) -> float:
        with autocast(device, training.optimization.precision):
            loss = objective(condition.to(device), data.to(device))
        loss.backward()
        return float(loss)  # waits for a GPU

    def drawn(_: int) -> Callable[[], float]:
        return partial(update, *training.batches.draw(training.optimization.batch_size, generator))

    return median_ms(drawn, _TIMED_UPDATES)
