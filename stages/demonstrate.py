"""Make demonstrations: let a scripted expert or a trained policy play, and keep the episodes that it solves.

Of a task's expert, in the task's public format, or of a block of params.yaml with an expert, as a LeRobotDataset:

    python -m stages.demonstrate --task kitchen --seeds 300000:300100 --most 100 \
        --out data/demonstrations/kitchen_starter.zip
    python -m stages.demonstrate --scale metaworld --task pick_place --seeds 300000:300100 --most 75 \
        --out data/demonstrations/metaworld_pick_place_starter.zip

Of a policy of Push-T, the starter data set that is shipped:

    python -m stages.demonstrate --checkpoint data/checkpoints/lab/pusht/fm-nfe1.safetensors --nfe 16 \
        --seeds 300000:300500 --out data/demonstrations/pusht_starter.npz

A checksum is written beside each. An interrupted run of an expert resumes when it is started with the same arguments.
"""

import argparse
from functools import partial
from pathlib import Path

from pipeline.evaluation.seeds import FIRST_DEMONSTRATION_SEED, seed_range
from pipeline.experts.registry import expert
from pipeline.kinds.demonstrate_expert import demonstrate
from pipeline.orchestration.stage import program, stage
from pipeline.settings import schema
from pipeline.settings.inputs import expert_inputs
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds",
        type=partial(seed_range, first=FIRST_DEMONSTRATION_SEED),
        required=True,
        help="FIRST:END, END excluded; neither test nor validation seeds",
    )
    parser.add_argument("--most", type=int, default=200, help="keep at most so many episodes, the first by seed")
    parser.add_argument("--out", type=Path, required=True)
    experts = parser.add_argument_group("experts")
    experts.add_argument("--task", help="a task with an expert; with --scale, a block of params.yaml")
    experts.add_argument("--scale", help="the scale of the block")
    experts.add_argument("--report", type=Path, help="file for the expert's success rate, as JSON")
    experts.add_argument("--workers", type=int, help="processes, by default one a core, 0 for none; changes no result")
    policies = parser.add_argument_group("policies")
    policies.add_argument("--checkpoint", type=Path)
    policies.add_argument("--nfe", type=int, help="default: 16")
    policies.add_argument("--evaluation", help="the evaluation that initial states are drawn for; default: pusht_b")
    arguments = parser.parse_args()
    if (arguments.task is None) == (arguments.checkpoint is None):
        parser.error("give --task, whose expert plays, or --checkpoint")
    of_other = ("scale", "report", "workers") if arguments.checkpoint else ("nfe", "evaluation")
    for name in of_other:
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name}: not an option with {'--checkpoint' if arguments.checkpoint else '--task'}")
    if arguments.most < 1 or (arguments.workers or 0) < 0:
        raise UserError("--most: allowed: 1 or more; --workers: 0 or more")
    if arguments.checkpoint:
        by_policy(arguments)
    else:
        by_expert(arguments)


def by_expert(arguments: argparse.Namespace) -> None:
    task, scale, out, seeds = arguments.task, arguments.scale, arguments.out, arguments.seeds
    block = schema.load().block(scale).task(task) if scale else None
    chosen = expert(block.task, block.custom) if block else expert(task)
    asked = {"seeds": f"{seeds.start}:{seeds.stop}", "most": arguments.most}
    checksum = out.with_name(out.name + ".sha256")
    with stage(
        expert_inputs(task, block, asked),
        f"demonstrate_expert-{scale}-{task}" if block else f"demonstrate_expert-{task}",
        deps=[],
        outs=[out, checksum, *([arguments.report] if arguments.report else [])],
    ) as here:
        workers = cores() if arguments.workers is None else arguments.workers
        options = {"workers": workers, "report": arguments.report}
        print(demonstrate(task, chosen, seeds, arguments.most, out, here, **options))


def by_policy(arguments: argparse.Namespace) -> None:
    # here: the processes of an expert import this file, and need none of it
    from pipeline.evaluation.demonstrate import solved_episodes, write_demonstrations
    from pipeline.evaluation.protocol import find_env_factory
    from pipeline.training.checkpoint import load_policy

    policy, metadata = load_policy(arguments.checkpoint)
    env_factory = find_env_factory(metadata.load_task(), metadata.task, arguments.evaluation or "pusht_b")
    solved = solved_episodes(policy.acting(arguments.nfe or 16), env_factory, arguments.seeds)
    kept = solved[: arguments.most]
    if not kept:
        raise UserError(f"{arguments.checkpoint}: solved none of {len(arguments.seeds)} episodes")
    write_demonstrations(arguments.out, kept)
    steps = sum(len(episode.action) for episode in kept)
    done = f"{len(solved)} of {len(arguments.seeds)} episodes solved"
    print(f"{done}; {len(kept)} kept, {steps} steps → {arguments.out}")


if __name__ == "__main__":
    program(main)
