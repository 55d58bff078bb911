"""Measure a row of Table 2: roll a model out on test seeds and write its episodes."""

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.protocol import find_env_factory, run_acting
from pipeline.evaluation.rollouts import POLICY_BATCH_SIZE, Episode, EpisodeResult, Policy, rollout
from pipeline.evaluation.seeds import test_seeds
from pipeline.evaluation.statistics import mean_interval, proportion_interval
from pipeline.evaluation.video import best_median_worst, record_videos
from pipeline.kinds import held_out
from pipeline.reporting.rows import mean_scores, metrics, write_row_episodes
from pipeline.settings.paths import BASELINES, SAMPLERS, Entry, ScaleReports, TaskFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.tasks.vector import EnvFactory
from pipeline.training.acting import acting, load_acting
from pipeline.training.job import Asked, Job
from pipeline.training.problem import Workspace
from pipeline.training.residual_checkpoint import load_model
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import fitting_workers


def job(asked: Asked, settings: ScaleSettings) -> Job:
    files, offline = TaskFiles(asked.scale, asked.task), settings.task(asked.task).load_task().offline
    deps = [files.model(asked.method, asked.nfe)]
    if offline:
        deps += [files.prepared, files.frames]
    elif asked.method in BASELINES:
        deps.append(files.frames)
    reports, entry = ScaleReports(asked.scale).folder, Entry(asked.task, asked.method, asked.nfe, within=asked.task)
    return Job(
        f"evaluate_rollouts-{asked.scale}-{entry.stem}",
        deps=list(dict.fromkeys(deps)),
        outs=[entry.episodes(reports), entry.metrics(reports)],
        also={"method": asked.method, "nfe": asked.nfe},
    )


def work(asked: Asked, settings: ScaleSettings, here: Workspace, _label: str) -> None:
    """Measure all evaluations of the task; of an offline task, its held-out windows."""
    of_task = settings.task(asked.task)
    task = of_task.load_task()
    if task.offline:
        held_out.score_row(asked, of_task, here)
        return
    evaluations, test = task.evaluations(asked.task), of_task.evaluation
    entries = [Entry(name, asked.method, asked.nfe, within=asked.task) for name in evaluations]
    simulated = {name: find_env_factory(task, asked.task, name, test) for name in evaluations}
    model = TaskFiles(asked.scale, asked.task).model(asked.method, asked.nfe)
    main_row = asked.method in ("fm", "ft_fm")
    policy, metadata = load_acting(model, asked.scale, asked.task, asked.method, asked.nfe, of_task)
    results = {
        name: run_acting(
            policy,
            env_factory,
            test_seeds(test.n_seeds if main_row else test.n_seeds_secondary),
            test,
            repeats=test.repeats,
            journal=here.resume / f"{name}.jsonl",
        )
        for name, env_factory in simulated.items()
    }
    reports = ScaleReports(asked.scale).folder
    episodes = entries[0].episodes(reports)
    write_row_episodes(episodes, results, model, metadata, asked.method, asked.nfe)
    measured = {
        entry.evaluation: metrics(results[entry.evaluation], metadata, entry, test.repeats) for entry in entries
    }
    write_text(entries[0].metrics(reports), json.dumps(measured, indent=2) + "\n")
    for entry in entries:
        print(summary(entry, results[entry.evaluation]))
        scores = mean_scores(results[entry.evaluation])
        here.run.log({f"{entry.evaluation}_{name}": score for name, score in scores.items()})
    here.run.table(episodes, entries[0].stem)
    if test.videos and main_row:
        for entry in (entry for entry in entries if evaluations[entry.evaluation].renders):
            of_entry = results[entry.evaluation], entry, simulated[entry.evaluation]
            for path in write_videos(here.resume / "videos", policy, *of_entry, test.policy_batch_size):
                here.run.artifact(path, "videos")


def score_checkpoint(
    checkpoint: Path,
    evaluation: str,
    nfe: int,
    episodes: Sequence[Episode],
    out: Path,
    *,
    num_envs: int,
    workers: int,
    method: str | None = None,
    videos: Path | None = None,
) -> str:
    """Roll any checkpoint out; write its episodes to ``out`` and return a one-line summary.

    Args:
        evaluation: one of the checkpoint's task. num_envs, workers: as of ``rollout``.
        method: ddpm or ddim, the sampler of a diffusion checkpoint; None: the checkpoint's own method.
        videos: folder for gifs of the best, median and worst episode; None: none are made.

    Raises:
        UserError: no such checkpoint or evaluation, or a ``method`` that does not fit the checkpoint.
    """
    policy, metadata = load_model(checkpoint)
    env_factory = find_env_factory(metadata.load_task(), metadata.task, evaluation)
    method = method or metadata.method
    if (method in SAMPLERS) != (metadata.method in SAMPLERS) or (method != metadata.method and method not in SAMPLERS):
        allowed = ", ".join(SAMPLERS) if metadata.method in SAMPLERS else metadata.method
        raise UserError(f"--method: given {method!r}, allowed for {checkpoint}: {allowed}")
    entry, actor = Entry(evaluation, method, nfe), acting(policy, method, nfe)
    results = rollout(actor, env_factory, episodes, num_envs=num_envs, workers=fitting_workers(workers))
    write_row_episodes(out, {evaluation: results}, checkpoint, metadata, method, nfe)
    if videos:
        write_videos(videos, actor, results, entry, env_factory, POLICY_BATCH_SIZE)
    return f"{checkpoint}: {summary(entry, results)} → {out}"


def summary(entry: Entry, results: Sequence[EpisodeResult]) -> str:
    """Return one line: the mean scores of an evaluation, with their intervals over seeds."""
    by_seed: dict[int, list[EpisodeResult]] = {}
    for result in results:
        by_seed.setdefault(result.seed, []).append(result)
    score = mean_interval([[result.max_score for result in of_seed] for of_seed in by_seed.values()])
    success = proportion_interval([[result.success for result in of_seed] for of_seed in by_seed.values()])
    return (
        f"{entry.evaluation}, {entry.method} at NFE {entry.nfe}: max score {score:.3f}, success {success:.1%}, "
        f"{len(by_seed)} seeds"
    )


def write_videos(
    folder: Path,
    policy: Policy,
    results: Sequence[EpisodeResult],
    entry: Entry,
    env_factory: EnvFactory,
    policy_batch_size: int,
) -> list[Path]:
    """Write gifs of the best, median and worst episode, named by rank, seed and score."""
    videos = []
    for rank, result in best_median_worst(results)._asdict().items():
        name = f"{entry.evaluation}-{entry.method}-nfe{entry.nfe}-{rank}-seed{result.seed}-score{result.max_score:.2f}"
        videos.append((result.episode, folder / f"{name}.gif"))
    record_videos(policy, env_factory, videos, policy_batch_size=policy_batch_size)
    return [path for _, path in videos]
