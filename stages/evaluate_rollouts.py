"""Stage ``evaluate_rollouts``: roll a checkpoint out on test seeds and write its episodes.

As a stage it takes --scale, --task, and --row or both --method and --nfe, and runs all evaluations of the task. Test
mode takes any checkpoint and seeds:

    python -m stages.evaluate_rollouts --checkpoint FILE --evaluation pusht_b --seeds 100000:100500 --repeats 1 \
        --nfe 16 --out episodes.csv
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation import offline
from pipeline.evaluation.protocol import FIRST_TEST_SEED, find_env_factory, run_acting, test_seeds
from pipeline.evaluation.rollouts import UNPERTURBED, EpisodeResult, Policy
from pipeline.evaluation.statistics import mean_interval, proportion_interval
from pipeline.evaluation.video import best_median_worst, record_videos
from pipeline.orchestration.stage import program, stage
from pipeline.reporting.offline_rows import mean_of, offline_metrics, write_offline_episodes
from pipeline.reporting.rows import mean_scores, metrics, write_row_episodes
from pipeline.settings.inputs import Inputs, read_inputs
from pipeline.settings.paths import BASELINES, PERSISTENCE, SAMPLERS, Entry, ScaleReports, TaskFiles, split_row
from pipeline.settings.schema import EvaluationSettings
from pipeline.tasks.vector import EnvFactory
from pipeline.training.acting import acting, load_acting
from pipeline.training.checkpoint import new_metadata
from pipeline.training.data import PreparedData
from pipeline.training.residual_checkpoint import load_model
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import cores, use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nfe", type=int)
    parser.add_argument("--method", help="in test mode of a diffusion checkpoint alone, ddpm or ddim")
    as_stage = parser.add_argument_group("as a stage")
    as_stage.add_argument("--scale")
    as_stage.add_argument("--task")
    as_stage.add_argument("--row", help="method and NFE in one word, such as resft_fm-nfe16")
    test = parser.add_argument_group("test mode")
    test.add_argument("--checkpoint", type=Path, help="a model file; turns test mode on")
    test.add_argument("--evaluation", help="one of the checkpoint's task")
    test.add_argument(
        "--seeds", type=seed_range, default=range(FIRST_TEST_SEED, FIRST_TEST_SEED + 10), help="FIRST:END, END excluded"
    )
    test.add_argument("--repeats", type=int, default=50, help="episodes a seed, which differ in the policy's noise")
    test.add_argument("--out", type=Path, default=Path("episodes.csv"))
    test.add_argument("--workers", type=int, default=cores(), help="simulation processes; changes no result")
    test.add_argument("--batch", type=int, default=500, help="episodes live at once; changes no result")
    test.add_argument("--videos", type=Path, help="folder for gifs of the best, median and worst episode")
    arguments = parser.parse_args()
    if arguments.row:
        arguments.method, arguments.nfe = split_row(arguments.row)
    if arguments.nfe is None:
        parser.error("give --nfe, or --row")
    if (
        arguments.nfe < (arguments.checkpoint is not None)
        or arguments.repeats < 1
        or arguments.batch < 1
        or arguments.workers < 0
    ):
        raise UserError("--nfe, --repeats and --batch: allowed: 1 or more; --workers: 0 or more")
    if arguments.checkpoint and arguments.evaluation:
        test_mode(arguments)
    elif arguments.scale and arguments.task and arguments.method:
        if arguments.evaluation:
            raise UserError(
                f"--evaluation: given {arguments.evaluation!r}, allowed with --checkpoint only: a stage runs all "
                "evaluations of its task"
            )
        as_dvc_stage(arguments)
    else:
        parser.error(
            "give --checkpoint and --evaluation (test mode), or --scale, --task and --method or --row (as a stage)"
        )


def as_dvc_stage(arguments: argparse.Namespace) -> None:
    scale, task, method, nfe = arguments.scale, arguments.task, arguments.method, arguments.nfe
    inputs = read_inputs(kind_of(method), scale, task)
    settings = inputs.settings.task(task)
    use_threads(settings.threads)
    about = settings.load_task()
    if about.offline:
        on_held_out_episodes(arguments, inputs)
        return
    simulated = {name: find_env_factory(about, task, name, settings.evaluation) for name in about.evaluations(task)}
    entries = [Entry(name, method, nfe, within=task) for name in simulated]
    stem, reports = entries[0].stem, ScaleReports(scale).folder
    episodes, metrics_file = entries[0].episodes(reports), entries[0].metrics(reports)
    files = TaskFiles(scale, task)
    model = files.model(method, nfe)
    main_row = method in ("fm", "ft_fm")
    n_seeds = settings.evaluation.n_seeds if main_row else settings.evaluation.n_seeds_secondary
    with stage(
        inputs,
        f"evaluate_rollouts-{scale}-{stem}",
        also={"method": method, "nfe": nfe},
        deps=[model, files.frames] if method in BASELINES else [model],
        outs=[episodes, metrics_file],
    ) as here:
        acting, metadata = load_acting(model, scale, task, method, nfe, settings)
        results = {
            entry.evaluation: run_acting(
                acting,
                simulated[entry.evaluation],
                test_seeds(n_seeds),
                settings.evaluation,
                repeats=settings.evaluation.repeats,
                journal=here.resume / f"{entry.evaluation}.jsonl",
            )
            for entry in entries
        }
        write_row_episodes(episodes, results, model, metadata, method, nfe)
        measured = {
            entry.evaluation: metrics(results[entry.evaluation], metadata, entry, settings.evaluation.repeats)
            for entry in entries
        }
        write_text(metrics_file, json.dumps(measured, indent=2) + "\n")
        for entry in entries:
            print(told(entry, results[entry.evaluation]))
            scores = mean_scores(results[entry.evaluation])
            here.run.log({f"{entry.evaluation}_{name}": score for name, score in scores.items()})
        here.run.table(episodes, stem)
        if settings.evaluation.videos and main_row:
            drawn = [entry for entry in entries if about.evaluations(task)[entry.evaluation].renders]
            for entry in drawn:
                folder = here.resume / "videos"
                of_entry = results[entry.evaluation], entry, simulated[entry.evaluation]
                for path in write_videos(folder, acting, *of_entry, settings.evaluation.policy_batch_size):
                    here.run.artifact(path, "videos")


def on_held_out_episodes(arguments: argparse.Namespace, inputs: Inputs) -> None:
    """Evaluate a row of an offline task on recorded windows of episodes that were not used to choose a checkpoint."""
    scale, task, method, nfe = arguments.scale, arguments.task, arguments.method, arguments.nfe
    settings, files, reports = inputs.settings.task(task), TaskFiles(scale, task), ScaleReports(scale).folder
    entry, model = Entry(task, method, nfe, within=task), files.model(method, nfe)
    episodes, metrics_file = entry.episodes(reports), entry.metrics(reports)
    with stage(
        inputs,
        f"evaluate_rollouts-{scale}-{entry.stem}",
        also={"method": method, "nfe": nfe},
        deps=list(dict.fromkeys([model, files.prepared, files.frames])),
        outs=[episodes, metrics_file],
    ) as here:
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
        write_offline_episodes(episodes, {UNPERTURBED: scores}, model, metadata, entry, repeats)
        measured = offline_metrics(scores, metadata, entry, repeats) | {"ms_per_plan": timed}
        write_text(metrics_file, json.dumps({task: measured}, indent=2) + "\n")
        means = mean_of(scores)
        print(f"{task}, {method} at NFE {nfe}: " + ", ".join(f"{name} {value:.4f}" for name, value in means.items()))
        here.run.log(means)
        here.run.table(episodes, entry.stem)


def kind_of(method: str) -> str:
    """Return the stage in dvc.yaml that makes the rows of ``method``."""
    if method in BASELINES:
        return "evaluate_baselines"
    if method in SAMPLERS:
        return "evaluate_diffusion"
    return "evaluate_residual" if method.startswith("resft_fm") else "evaluate_rollouts"


def test_mode(arguments: argparse.Namespace) -> None:
    policy, metadata = load_model(arguments.checkpoint)
    simulated = find_env_factory(metadata.load_task(), metadata.task, arguments.evaluation)
    method = arguments.method or metadata.method
    if (method in SAMPLERS) != (metadata.method in SAMPLERS) or (method != metadata.method and method not in SAMPLERS):
        allowed = ", ".join(SAMPLERS) if metadata.method in SAMPLERS else metadata.method
        raise UserError(f"--method: given {method!r}, allowed for {arguments.checkpoint}: {allowed}")
    settings = EvaluationSettings(
        n_seeds=len(arguments.seeds),
        repeats=arguments.repeats,
        n_seeds_secondary=len(arguments.seeds),
        max_steps=simulated.max_steps,
        workers=arguments.workers,
        num_envs=arguments.batch,
        policy_batch_size=64,
        videos=arguments.videos is not None,
    )
    entry = Entry(arguments.evaluation, method, arguments.nfe)
    actor = acting(policy, method, entry.nfe)
    results = run_acting(actor, simulated, arguments.seeds, settings, repeats=arguments.repeats)
    write_row_episodes(arguments.out, {entry.evaluation: results}, arguments.checkpoint, metadata, method, entry.nfe)
    if arguments.videos:
        write_videos(arguments.videos, actor, results, entry, simulated, settings.policy_batch_size)
    print(f"{arguments.checkpoint}: {told(entry, results)} → {arguments.out}")


def told(entry: Entry, results: Sequence[EpisodeResult]) -> str:
    """Return a line with the mean scores of an evaluation and their intervals over seeds."""
    by_seed: dict[int, list[EpisodeResult]] = {}
    for result in results:
        by_seed.setdefault(result.seed, []).append(result)
    score = mean_interval([[result.max_score for result in of_seed] for of_seed in by_seed.values()])
    success = proportion_interval([[result.success for result in of_seed] for of_seed in by_seed.values()])
    return (
        f"{entry.evaluation}, {entry.method} at NFE {entry.nfe}: max score {score:.3f}, success {success:.1%}, "
        f"{len(by_seed)} seeds"
    )


def seed_range(text: str) -> range:
    first, _, end = text.partition(":")
    if not (first.isdigit() and end.isdigit() and int(first) < int(end) <= 2**32):
        raise UserError(f"--seeds: given {text!r}, allowed: FIRST:END such as 100000:100500, below 2**32")
    return range(int(first), int(end))


def write_videos(
    folder: Path, acting: Policy, results: Sequence[EpisodeResult], entry: Entry, env_factory: EnvFactory, block: int
) -> list[Path]:
    """Write gifs of the best, median and worst episode, named by rank, seed and score; ``block`` as in the rollout."""
    videos = []
    for rank, result in best_median_worst(results)._asdict().items():
        name = f"{entry.evaluation}-{entry.method}-nfe{entry.nfe}-{rank}-seed{result.seed}-score{result.max_score:.2f}"
        videos.append((result.episode, folder / f"{name}.gif"))
    record_videos(acting, env_factory, videos, block=block)
    return [path for _, path in videos]


if __name__ == "__main__":
    program(main)
