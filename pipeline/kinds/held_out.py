"""Measure a row of an offline task: score samples for the recorded windows of held-out episodes."""

import json

from pipeline.evaluation import offline
from pipeline.evaluation.rollouts import UNPERTURBED
from pipeline.reporting.offline_rows import mean_of, offline_metrics, write_offline_episodes
from pipeline.settings.paths import PERSISTENCE, Entry, ScaleReports, TaskFiles
from pipeline.settings.schema import TaskSettings
from pipeline.training.acting import load_acting
from pipeline.training.checkpoint import new_metadata
from pipeline.training.data import PreparedData
from pipeline.training.job import Asked
from pipeline.training.problem import Workspace
from pipeline.utils.atomic import write_text


def score_row(asked: Asked, settings: TaskSettings, here: Workspace) -> None:
    """Score a row on the windows of the reported episodes, which no choice was made by."""
    scale, task, method, nfe = asked.scale, asked.task, asked.method, asked.nfe
    files, reports = TaskFiles(scale, task), ScaleReports(scale).folder
    entry, model = Entry(task, method, nfe, within=task), files.model(method, nfe)
    data = PreparedData.load(files.prepared)
    windows = data.reported_windows(files.prepared)
    if method == PERSISTENCE:
        metadata, timed, answers = new_metadata(scale, task, method, settings), None, offline.persisted(windows)
    else:
        policy, metadata = load_acting(model, scale, task, method, nfe, settings)
        answers = offline.draw(policy, windows, settings.evaluation.policy_batch_size)
        timed = offline.milliseconds_a_plan(policy, windows)
    scores = offline.score(answers, windows, data.action_normalizer, settings.data.n_action_steps)
    repeats = answers.shape[1]
    episodes = entry.episodes(reports)
    write_offline_episodes(episodes, {UNPERTURBED: scores}, model, metadata, entry, repeats)
    measured = offline_metrics(scores, metadata, entry, repeats) | {"ms_per_plan": timed}
    write_text(entry.metrics(reports), json.dumps({task: measured}, indent=2) + "\n")
    means = mean_of(scores)
    print(f"{task}, {method} at NFE {nfe}: " + ", ".join(f"{name} {value:.4f}" for name, value in means.items()))
    here.run.log(means)
    here.run.table(episodes, entry.stem)
