"""Evaluate a model: as a stage of dvc.yaml, or any checkpoint by itself.

stages
  --scale lab --task pusht --row ft_fm-nfe1
        its episodes on test seeds, or its scores on the held-out windows of an offline task (Table 2)
  --scale lab --task pusht --row ft_fm-nfe1 --disturbed
        the same under each disturbance
  --scale lab --task cifar10 --method i_cfm
        distances of generated images to the data (Table 1); method untrained: of a net before its first step
checkpoints
  --checkpoint FILE --evaluation pusht_b --nfe 16 --seeds 100000:100500 --repeats 1 --out episodes.csv
  --checkpoint FILE --solver euler-4 --seeds 100000:100003 --out distances.csv
        of images, which need the classifier of their scale (`dvc repro train_extractor@lab-cifar10`)
"""

import argparse
from importlib import import_module
from pathlib import Path
from typing import get_args

from pipeline.evaluation.seeds import FIRST_TEST_SEED, seed_range
from pipeline.orchestration.kinds import run_kind
from pipeline.orchestration.stage import program
from pipeline.settings.images import SHAPES, ImageMethod
from pipeline.settings.paths import BASELINES, SAMPLERS, split_row
from pipeline.training.job import Asked
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import cores

IMAGE_METHODS = ("untrained", *get_args(ImageMethod), "ft_fm", "resft_fm")
OPTIONS = {
    "a stage": ("scale", "task", "row", "method", "nfe", "disturbed"),
    "--checkpoint and --evaluation": (
        *("checkpoint", "evaluation", "method", "nfe", "seeds", "repeats", "out", "workers", "num_envs", "videos"),
    ),
    "--checkpoint and --solver": ("checkpoint", "solver", "seeds", "n_samples", "out"),
}
"""What is evaluated → the options that it has."""


def main() -> None:
    arguments = parsed()
    if arguments.checkpoint is None:
        as_stage(arguments)
    elif arguments.solver:
        given = arguments.checkpoint, arguments.solver, arguments.seeds, arguments.n_samples
        lines = import_module("pipeline.kinds.evaluate_fid").score_checkpoint(
            *given, arguments.out or Path("distances.csv")
        )
        print("\n".join(lines))
    else:
        of_policy(arguments)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", help="of a diffusion checkpoint, ddpm or ddim")
    parser.add_argument("--nfe", type=int)
    stages = parser.add_argument_group("stages")
    stages.add_argument("--scale")
    stages.add_argument("--task", help="a block of params.yaml")
    stages.add_argument("--row", help="method and NFE in one word, such as resft_fm-nfe16")
    stages.add_argument("--disturbed", action="store_true", default=None, help="under each disturbance")
    checkpoints = parser.add_argument_group("checkpoints")
    checkpoints.add_argument("--checkpoint", type=Path, help="a model file")
    checkpoints.add_argument("--evaluation", help="one of the checkpoint's task")
    checkpoints.add_argument("--solver", action="append", help="euler-<steps> or dopri5; may be given several times")
    checkpoints.add_argument("--seeds", type=seed_range, help="FIRST:END, END excluded")
    checkpoints.add_argument("--repeats", type=int, help="episodes a seed, each with noise of its own; default: 50")
    checkpoints.add_argument("--n-samples", type=int, help="images of each distance; default: as in params.yaml")
    checkpoints.add_argument("--out", type=Path, help="default: episodes.csv or distances.csv")
    checkpoints.add_argument("--workers", type=int, help="simulation processes, default: one a core; changes no result")
    checkpoints.add_argument("--num-envs", type=int, help="episodes live at once, by default 500; changes no result")
    checkpoints.add_argument("--videos", type=Path, help="folder for gifs of the best, median and worst episode")
    arguments = parser.parse_args()
    if arguments.checkpoint is not None and bool(arguments.evaluation) == bool(arguments.solver):
        parser.error("--checkpoint: give --evaluation of a policy, or --solver of images, with it")
    of_checkpoint = "--checkpoint and --solver" if arguments.solver else "--checkpoint and --evaluation"
    mode = "a stage" if arguments.checkpoint is None else of_checkpoint
    for name, value in vars(arguments).items():
        if value is not None and name not in OPTIONS[mode]:
            raise UserError(f"--{name.replace('_', '-')}: not an option of {mode}; see --help")
    if arguments.row:
        arguments.method, arguments.nfe = split_row(arguments.row)
    if arguments.checkpoint is None and not (arguments.scale and arguments.task and arguments.method):
        parser.error("give --checkpoint, or --scale, --task and --method or --row (as a stage)")
    return arguments


def as_stage(arguments: argparse.Namespace) -> None:
    kind = kind_of(arguments.task, arguments.method, arguments.nfe, disturbed=bool(arguments.disturbed))
    run_kind(kind, Asked(arguments.scale, arguments.task, arguments.method, arguments.nfe or 0))


def kind_of(task: str, method: str, nfe: int | None, *, disturbed: bool = False) -> str:
    """Return the kind of stage that evaluates ``method`` of ``task``.

    Raises:
        UserError: images have no such method or option, or the number of function evaluations is missing or negative.
    """
    if task in SHAPES:
        if method not in IMAGE_METHODS:
            raise UserError(f"--method: given {method!r}, allowed for {task}: {', '.join(IMAGE_METHODS)}")
        if nfe is not None or disturbed:
            raise UserError(f"--nfe, --row and --disturbed: not options of {task}, which is of images; give --method")
        return "evaluate_untrained" if method == "untrained" else "evaluate_fid"
    if nfe is None or nfe < 0:
        raise UserError(f"--nfe: given {nfe}, allowed: 0 or more; give --nfe, or --row")
    if disturbed:
        return "evaluate_robustness"
    if method in BASELINES:
        return "evaluate_baselines"
    if method in SAMPLERS:
        return "evaluate_diffusion"
    return "evaluate_residual" if method.startswith("resft_fm") else "evaluate_rollouts"


def of_policy(arguments: argparse.Namespace) -> None:
    """Roll a checkpoint of a policy out on the seeds asked for."""
    seeds = arguments.seeds or range(FIRST_TEST_SEED, FIRST_TEST_SEED + 10)
    repeats, num_envs, workers = (
        default if given is None else given
        for given, default in ((arguments.repeats, 50), (arguments.num_envs, 500), (arguments.workers, cores()))
    )
    if min(arguments.nfe or 0, repeats, num_envs) < 1 or workers < 0:
        raise UserError("--nfe, --repeats and --num-envs: allowed: 1 or more; --workers: 0 or more")
    rollouts = import_module("pipeline.kinds.evaluate_rollouts")
    line = rollouts.score_checkpoint(
        *(arguments.checkpoint, arguments.evaluation, arguments.nfe),
        [rollouts.Episode(seed, repeat) for seed in seeds for repeat in range(repeats)],
        arguments.out or Path("episodes.csv"),
        num_envs=num_envs,
        workers=workers,
        method=arguments.method,
        videos=arguments.videos,
    )
    print(line)


if __name__ == "__main__":
    program(main)
