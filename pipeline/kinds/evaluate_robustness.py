"""Measure a model under each disturbance: its episodes on the first test seeds, or its held-out windows."""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch

from pipeline.evaluation import offline
from pipeline.evaluation.offline_scores import EpisodeScores
from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.protocol import find_env_factory, run_acting
from pipeline.evaluation.robustness import Disturbed, perturbation
from pipeline.evaluation.seeds import test_seeds
from pipeline.reporting.offline_rows import write_offline_episodes
from pipeline.reporting.rows import mean_scores, write_all_episodes
from pipeline.settings.paths import Entry, ScaleReports, TaskFiles
from pipeline.settings.schema import Disturbance, ScaleSettings, TaskSettings
from pipeline.training.acting import load_to_evaluate
from pipeline.training.data import PreparedData
from pipeline.training.job import Asked, Job
from pipeline.training.problem import Workspace


def job(asked: Asked, settings: ScaleSettings) -> Job:
    files, entry = TaskFiles(asked.scale, asked.task), _entry(asked, settings.task(asked.task))
    return Job(
        f"evaluate_robustness-{asked.scale}-{entry.stem}",
        deps=[files.model(asked.method, asked.nfe), files.prepared, files.frames],
        outs=[ScaleReports(asked.scale).disturbed_episodes(entry)],
    )


def work(asked: Asked, settings: ScaleSettings, here: Workspace, _label: str) -> None:
    of_task, files = settings.task(asked.task), TaskFiles(asked.scale, asked.task)
    entry, model = _entry(asked, of_task), files.model(asked.method, asked.nfe)
    policy, metadata = load_to_evaluate(model, asked.scale, asked.task, of_task)
    policy.to("cuda" if torch.cuda.is_available() else "cpu")
    given = of_task.robustness.strengths
    strengths = {disturbance: given[disturbance] for disturbance in get_args(Disturbance) if disturbance in given}
    out = ScaleReports(asked.scale).disturbed_episodes(entry)
    task = of_task.load_task()
    if task.offline:
        scores = _window_scores(policy, entry.nfe, strengths, of_task, files.prepared)
        write_offline_episodes(out, scores, model, metadata, entry, offline.SAMPLES)
        return
    results = {}
    for disturbance, strength in strengths.items():
        results[entry.evaluation, perturbation(disturbance, strength)] = episodes = run_acting(
            Disturbed(policy, entry.nfe, disturbance, strength),
            find_env_factory(task, asked.task, entry.evaluation, of_task.evaluation),
            test_seeds(of_task.robustness.seeds),
            of_task.evaluation,
            journal=here.resume / f"{disturbance}.jsonl",
        )
        here.run.log({f"{disturbance}_{name}": value for name, value in mean_scores(episodes).items()})
    write_all_episodes(out, results, model, metadata, entry.method, entry.nfe)
    here.run.table(out, out.stem)


def _entry(asked: Asked, settings: TaskSettings) -> Entry:
    evaluation = asked.task if settings.load_task().offline else settings.select.evaluation
    return Entry(evaluation, asked.method, asked.nfe, within=asked.task)


def _window_scores(
    policy: FlowPolicy, nfe: int, strengths: Mapping[Disturbance, float], settings: TaskSettings, prepared: Path
) -> dict[str, list[EpisodeScores]]:
    """Score the held-out windows under each disturbance."""
    data = PreparedData.load(prepared)
    windows = data.reported_windows(prepared)
    scores = {}
    for disturbance, strength in strengths.items():
        answers = offline.draw(
            Disturbed(policy, nfe, disturbance, strength), windows, settings.evaluation.policy_batch_size
        )
        scores[perturbation(disturbance, strength)] = offline.score(
            answers, windows, data.action_normalizer, settings.data.n_action_steps
        )
    return scores
