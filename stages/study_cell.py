"""Stage ``study_cell``: one row of the coupling study, trained from one base model and rolled out on the test seeds.

A row is ``fm`` (the base model itself), ``fm_continued``, an outsider (``regression``, ``mip``) or a coupling. All but
``fm`` are trained for the same compute, and of a row's checkpoints the best on validation seeds is what is reported.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from pipeline import config
from pipeline.config import Optimization, TaskSettings
from pipeline.errors import UserError
from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.protocol import run_episodes, test_seeds, validation_seeds
from pipeline.layout import Entry, ScaleReports, TaskFiles
from pipeline.reporting.rows import mean_scores, write_metrics, write_row_episodes
from pipeline.reporting.study import ROW_NAMES, seed_folder
from pipeline.seeding import Generators
from pipeline.stage import Stage, program, stage
from pipeline.training.checkpoint import Record, build_policy, load_policy, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.guard import Guard
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import Batches, Objective, evenly_spaced, train
from pipeline.training.outsiders import MinimalIterative, MinimalIterativeField, Regression, RegressionField
from pipeline.training.recipe import flow_matching, maximum_likelihood, within_budget
from pipeline.training.selection import Candidate, select

TIMED_UPDATES = 20
FIELDS: dict[str, Callable[[nn.Module], nn.Module]] = {"regression": RegressionField, "mip": MinimalIterativeField}
"""What makes a velocity field of the nets of outsiders."""


@dataclass(frozen=True)
class Training:
    """How a row is trained, and from how many steps on its own are counted."""

    objective: Objective
    batches: Batches
    generators: Generators
    optimization: Optimization
    steps_before: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--train-seed", required=True, type=int)
    parser.add_argument("--row", required=True, choices=list(ROW_NAMES))
    parser.add_argument("--nfe", required=True, type=int, nargs="+", help="couplings are trained for one alone")
    arguments = parser.parse_args()
    scale, task, row = arguments.scale, arguments.task, arguments.row
    here_settings = config.load().block(scale).task(task)
    seed = arguments.train_seed
    files = TaskFiles(scale, task, None if seed == here_settings.seed else seed)
    settings = here_settings.replica(seed)
    if settings.study is None:
        raise UserError(f"params.yaml: {scale}.{task}.study: is missing, and says how the study is made")
    torch.set_num_threads(settings.threads)

    evaluation = settings.select.evaluation
    reports = seed_folder(ScaleReports(scale).study, seed)
    entries = [Entry(evaluation, row, nfe) for nfe in arguments.nfe]
    outs = [path for entry in entries for path in (entry.episodes(reports), entry.metrics(reports))]
    label = f"study-{scale}-{task}-{row}-{'_'.join(str(nfe) for nfe in arguments.nfe)}-seed{seed}"
    params = settings.model_dump(include={"seed", "threads", "pretrain", "evaluation", "study", "finetune"})
    with stage("stages/study_cell.py", label, params=params, deps=[files.base, files.prepared], outs=outs) as here:
        data = PreparedData.load(files.prepared)
        policy, base = load_policy(files.base)
        guard = Guard(policy, data, seed)
        models, update_ms = [files.base], float("nan")
        if row != "fm":
            training = make_training(row, arguments.nfe, policy, base, data, settings, here.resume)
            models = train_row(training, policy, base, row, settings.study.checkpoints, here, label)
            update_ms = measure_update(training)
        for entry in entries:
            model = best_on_validation(models, entry, settings, here)
            tuned, record = load_row(model, row)
            reading = guard.read(tuned, entry.nfe)
            record = replace(record, nfe=entry.nfe, method=row)
            record.figures.update({"spread_ratio": reading.spread_ratio, **asdict(reading.diversity)})
            seeds = test_seeds(settings.evaluation.n_seeds)
            journal = here.resume / f"{entry.stem}-{model.stem}.jsonl"
            results = run_episodes(tuned, task, evaluation, entry.nfe, seeds, settings.evaluation, journal=journal)
            write_row_episodes(entry.episodes(reports), results, model, record, entry)
            timing = {} if row == "fm" else {"update_ms": round(update_ms, 1)}
            scores = write_metrics(entry.metrics(reports), results, record, entry, 1, **timing)
            here.run.log({f"nfe{entry.nfe}_{name}": value for name, value in scores.items()})


def make_training(
    row: str,
    numbers: list[int],
    policy: FlowPolicy,
    base: Record,
    data: PreparedData,
    settings: TaskSettings,
    resume: Path,
) -> Training:
    """How ``row`` is trained within the study's budget.

    Raises:
        UserError: a coupling and several numbers of evaluations.
    """
    study, pretrain = settings.study, settings.pretrain
    assert study is not None
    windows = Batches(data.condition, data.action)
    generators = Generators(settings.seed, "study", row, *numbers)
    if row == "fm_continued":
        optimization = pretrain.model_copy(update={"steps": study.budget, "lr": study.fm_lr})
        objective = flow_matching(policy.net, pretrain, generators)
        return Training(objective, windows, generators, optimization, base.train_steps)
    if row in FIELDS:
        net = build_policy(base).net
        outsider = Regression(net) if row == "regression" else MinimalIterative(net, generators)
        evaluations = {"regression": 1, "mip": 2}[row]  # of the net in an update; one of flow matching has one
        steps = (base.train_steps + study.budget) // evaluations
        return Training(outsider, windows, generators, pretrain.model_copy(update={"steps": steps}), 0)
    if len(numbers) > 1:
        raise UserError(f"--nfe: given {numbers}, allowed for {row}: one number, which it is trained for")
    (nfe,) = numbers
    recipe = within_budget(
        study.recipe(row, nfe, settings.finetune["nfe1"]), nfe, study.budget, pretrain, len(data.action)
    )
    likelihood, batches = maximum_likelihood(
        policy.net, recipe, nfe, pretrain, generators, windows, keep=resume / "pairs.pt"
    )
    return Training(likelihood, batches, generators, recipe, base.train_steps)


def train_row(
    training: Training, policy: FlowPolicy, base: Record, row: str, checkpoints: int, here: Stage, label: str
) -> list[Path]:
    """Train, and return the checkpoints, in the precision in which models are stored."""
    steps = evenly_spaced(training.optimization.steps, checkpoints)
    paths = {step: here.resume / "checkpoints" / f"step-{step:07d}.safetensors" for step in steps}

    def keep(step: int, net: nn.Module) -> bool:
        record = replace(base, method=row, train_steps=training.steps_before + step, figures={})
        save_policy(paths[step], policy.with_net(net), record, half=True)
        return True

    train(
        training.objective,
        training.batches,
        training.optimization,
        training.generators,
        milestones=steps,
        on_milestone=keep,
        log=TrainingLog(here.resume / "log.jsonl", here.run),
        state_path=here.resume / "state.pt",
        title=label,
    )
    return list(paths.values())


def load_row(model: Path, row: str) -> tuple[FlowPolicy, Record]:
    """The policy of a checkpoint of ``row``; an outsider's net as the field that makes a flow of it."""
    policy, record = load_policy(model)
    return policy.with_net(FIELDS[row](policy.net)) if row in FIELDS else policy, record


def best_on_validation(models: list[Path], entry: Entry, settings: TaskSettings, here: Stage) -> Path:
    """The checkpoint with the highest mean max score on validation seeds, at the entry's number of evaluations."""
    if len(models) == 1:
        return models[0]
    assert settings.study is not None
    seeds = validation_seeds(settings.study.seeds)

    def judge(path: Path) -> Candidate:
        policy, record = load_row(path, entry.method)
        journal = here.resume / f"validation-{entry.stem}-{path.stem}.jsonl"
        results = run_episodes(
            policy, record.task, entry.evaluation, entry.nfe, seeds, settings.evaluation, journal=journal
        )
        scores = mean_scores(results)
        return Candidate(path.name, record.train_steps, scores["max_score"], scores)

    selection = select(models, judge, "highest mean max score on validation seeds")
    return models[0].with_name(selection.selected)


def measure_update(training: Training) -> float:
    """Median time of an update's forward and backward pass, pairing included, in milliseconds."""
    objective, generator = training.objective, torch.Generator().manual_seed(0)
    bf16 = training.optimization.precision == "bf16"
    times = []
    for _ in range(TIMED_UPDATES):
        condition, data = training.batches.draw(training.optimization.batch_size, generator)
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = objective(condition, data)
        loss.backward()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    program(main)
