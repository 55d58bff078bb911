"""Stage ``evaluate_rollouts``: roll a checkpoint out on test seeds and write its episodes.

As a stage it takes --scale, --task, --evaluation, and --method and --nfe or, both in one, --row. In test mode it takes
any checkpoint and seeds:

    python -m stages.evaluate_rollouts --checkpoint FILE --evaluation pusht_b --seeds 100000:100500 --repeats 1 \
        --nfe 16 --out episodes.csv
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline import config
from pipeline.config import EvaluationSettings
from pipeline.errors import UserError
from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.protocol import FIRST_TEST_SEED, require_evaluation, run_episodes, test_seeds
from pipeline.evaluation.rollouts import EpisodeResult
from pipeline.evaluation.video import best_median_worst, record
from pipeline.layout import Entry, ScaleReports, TaskFiles, split_row
from pipeline.reporting.rows import mean_scores, write_metrics, write_row_episodes
from pipeline.stage import Stage, program, stage
from pipeline.tasks.pusht import MAX_STEPS
from pipeline.tasks.registry import TASKS
from pipeline.training.checkpoint import Record, require_architecture
from pipeline.training.residual_checkpoint import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--nfe", type=int)
    as_stage = parser.add_argument_group("as a stage")
    as_stage.add_argument("--scale")
    as_stage.add_argument("--task")
    as_stage.add_argument("--method")
    as_stage.add_argument("--row", help="method and NFE in one word, such as resft_fm-nfe16")
    test = parser.add_argument_group("test mode")
    test.add_argument("--checkpoint", type=Path, help="a model file; turns test mode on")
    test.add_argument(
        "--seeds", type=seed_range, default=range(FIRST_TEST_SEED, FIRST_TEST_SEED + 10), help="FIRST:END, END excluded"
    )
    test.add_argument("--repeats", type=int, default=50, help="episodes a seed, which differ in the policy's noise")
    test.add_argument("--out", type=Path, default=Path("episodes.csv"))
    test.add_argument("--workers", type=int, default=2, help="simulation processes; changes no result")
    test.add_argument("--batch", type=int, default=500, help="episodes live at once; changes no result")
    test.add_argument("--videos", type=Path, help="folder for gifs of the best, median and worst episode")
    arguments = parser.parse_args()
    if arguments.row:
        arguments.method, arguments.nfe = split_row(arguments.row)
    if arguments.nfe is None:
        parser.error("give --nfe, or --row")
    if arguments.nfe < 1 or arguments.repeats < 1 or arguments.batch < 1 or arguments.workers < 0:
        raise UserError("--nfe, --repeats and --batch: allowed: 1 or more; --workers: 0 or more")
    if arguments.checkpoint:
        test_mode(arguments)
    elif arguments.scale and arguments.task and arguments.method:
        as_dvc_stage(arguments)
    else:
        parser.error("give --checkpoint (test mode), or --scale, --task and --method or --row (as a stage)")


def as_dvc_stage(arguments: argparse.Namespace) -> None:
    scale, task, method, nfe = arguments.scale, arguments.task, arguments.method, arguments.nfe
    settings = config.load().block(scale).task(task)
    require_evaluation(arguments.evaluation, task)
    torch.set_num_threads(settings.threads)
    entry = Entry(arguments.evaluation, method, nfe)
    reports = ScaleReports(scale).folder
    episodes, metrics = entry.episodes(reports), entry.metrics(reports)
    model = TaskFiles(scale, task).model(method, nfe)
    beside = f"{method}-nfe{nfe}" in settings.residual
    n_seeds = settings.evaluation.side_seeds if beside else settings.evaluation.n_seeds
    with stage(
        "stages/evaluate_rollouts.py",
        f"evaluate_rollouts-{scale}-{task}-{entry.stem}",
        params=settings.model_dump(include={"threads", "evaluation"}) | {"evaluation_name": entry.evaluation},
        deps=[model],
        outs=[episodes, metrics],
    ) as here:
        policy, record = load_model(model)
        require_architecture(model, record, settings.data, settings.net)
        results = run_episodes(
            policy,
            task,
            entry.evaluation,
            nfe,
            test_seeds(n_seeds),
            settings.evaluation,
            repeats=settings.evaluation.repeats,
            journal=here.resume / "episodes.jsonl",
        )
        write_row_episodes(episodes, results, model, record, entry)
        here.run.log(write_metrics(metrics, results, record, entry, settings.evaluation.repeats))
        here.run.table(episodes, entry.stem)
        if settings.evaluation.videos and not beside:
            keep_videos(here, policy, record, results, entry, settings.evaluation)


def test_mode(arguments: argparse.Namespace) -> None:
    policy, record = load_model(arguments.checkpoint)
    require_evaluation(arguments.evaluation, record.task)
    settings = EvaluationSettings(
        n_seeds=len(arguments.seeds),
        repeats=arguments.repeats,
        side_seeds=len(arguments.seeds),
        max_steps=MAX_STEPS,
        reset_order="exact",
        workers=arguments.workers,
        batch=arguments.batch,
        block=64,
        videos=arguments.videos is not None,
    )
    entry = Entry(arguments.evaluation, record.method, arguments.nfe)
    results = run_episodes(
        policy, record.task, entry.evaluation, entry.nfe, arguments.seeds, settings, repeats=arguments.repeats
    )
    write_row_episodes(arguments.out, results, arguments.checkpoint, record, entry)
    if arguments.videos:
        write_videos(arguments.videos, policy, record, results, entry, settings)
    scores = mean_scores(results)
    print(
        f"{arguments.checkpoint}: {entry.evaluation} at NFE {entry.nfe}, {len(arguments.seeds)} seeds x "
        f"{arguments.repeats}: mean max score {scores['max_score']:.4f}, success {scores['success']:.4f} "
        f"→ {arguments.out}"
    )


def seed_range(text: str) -> range:
    first, _, end = text.partition(":")
    if not (first.isdigit() and end.isdigit() and int(first) < int(end) <= 2**32):
        raise UserError(f"--seeds: given {text!r}, allowed: FIRST:END such as 100000:100500, below 2**32")
    return range(int(first), int(end))


def keep_videos(
    here: Stage,
    policy: FlowPolicy,
    record: Record,
    results: Sequence[EpisodeResult],
    entry: Entry,
    settings: EvaluationSettings,
) -> None:
    for path in write_videos(here.resume / "videos", policy, record, results, entry, settings):
        here.run.artifact(path, "videos")


def write_videos(
    folder: Path,
    policy: FlowPolicy,
    model: Record,
    results: Sequence[EpisodeResult],
    entry: Entry,
    settings: EvaluationSettings,
) -> list[Path]:
    """Gifs of the best, median and worst episode, named by rank, seed and score."""
    task = TASKS[model.task]
    evaluation = task.evaluation(entry.evaluation, settings.reset_order, settings.max_steps)  # type: ignore[arg-type]
    paths = []
    for rank, result in best_median_worst(results)._asdict().items():
        path = folder / f"{entry.stem}-{rank}-seed{result.seed}-score{result.max_score:.2f}.gif"
        record(policy.acting(entry.nfe), evaluation, result.episode, path, block=settings.block)
        paths.append(path)
    return paths


if __name__ == "__main__":
    program(main)
