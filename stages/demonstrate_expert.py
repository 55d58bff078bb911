"""Make demonstrations: run a task's scripted expert and keep the episodes that it solves.

To make a small shipped set again, in the task's public format and with ``<out>.sha256`` beside:

    python -m stages.demonstrate_expert --task kitchen --seeds 300000:300100 --most 100 \
        --out data/demonstrations/kitchen_starter.zip

To run the ``custom.expert`` of a block of params.yaml, and write a LeRobotDataset:

    python -m stages.demonstrate_expert --scale metaworld --task pick_place --seeds 300000:300100 --most 75 \
        --out data/demonstrations/metaworld_pick_place_starter.zip

An interrupted run continues when started again with the same arguments.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.statistics import proportion_interval
from pipeline.experts.collect import collect
from pipeline.experts.episode import ExpertEpisode
from pipeline.experts.registry import expert
from pipeline.orchestration.stage import program, stage
from pipeline.settings import schema
from pipeline.settings.inputs import inputs_of, scripted
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import cores

FIRST_SEED = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True)
    parser.add_argument(
        "--scale", help="of the block of params.yaml that --task names; without it, --task is a task's name"
    )
    parser.add_argument("--seeds", required=True, help="FIRST:END, END excluded; neither test nor validation seeds")
    parser.add_argument("--most", type=int, default=200, help="keep at most so many episodes, the first by seed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", type=Path, help="file for the expert's success rate, as JSON")
    parser.add_argument("--workers", type=int, default=cores(), help="processes, 0 for none; changes no result")
    arguments = parser.parse_args()
    seeds = seed_range(arguments.seeds)
    if arguments.most < 1 or arguments.workers < 0:
        raise UserError("--most: allowed: 1 or more; --workers: 0 or more")
    task, out = arguments.task, arguments.out
    checksum = out.with_name(out.name + ".sha256")

    block = schema.load().block(arguments.scale).task(task) if arguments.scale else None
    chosen = expert(block.task, block.custom) if block else expert(task)
    depends = {**scripted(task, block), "seeds": arguments.seeds, "most": arguments.most}
    with stage(
        inputs_of("stages/demonstrate_expert.py", depends),
        f"demonstrate_expert-{arguments.scale}-{task}" if block else f"demonstrate_expert-{task}",
        deps=[],
        outs=[out, checksum, *([arguments.report] if arguments.report else [])],
    ) as here:
        episodes = collect(chosen.demonstrate, seeds, here.resume / "episodes", workers=arguments.workers)
        solved = [episode for episode in episodes if episode.success]
        kept = solved[: arguments.most]
        if not kept:
            raise UserError(f"{task}: the expert solved none of {len(seeds)} episodes")
        chosen.write(out, kept)
        write_text(checksum, f"{hashlib.sha256(out.read_bytes()).hexdigest()}  {out.name}\n")
        rate = proportion_interval([episode.success for episode in episodes])
        if arguments.report:
            write_text(arguments.report, json.dumps(report(task, episodes), indent=2) + "\n")
        here.run.log({"success": rate.mean, "score": sum(episode.score for episode in episodes) / len(episodes)})
    steps = sum(len(episode.actions) for episode in kept)
    print(
        f"{len(solved)} of {len(seeds)} episodes solved: {rate.mean:.3f}, 95 % interval {rate.low:.3f} to "
        f"{rate.high:.3f}; {len(kept)} kept, {steps} steps → {out}"
    )


def report(task: str, episodes: Sequence[ExpertEpisode]) -> dict[str, object]:
    """Return the expert's success rate with its 95 % interval, and the mean number of steps of its episodes."""
    rate = proportion_interval([episode.success for episode in episodes])
    numbers = {"success": rate.mean, "success_low": rate.low, "success_high": rate.high}
    numbers["mean_steps"] = sum(len(episode.actions) for episode in episodes) / len(episodes)
    seeds = {"episodes": len(episodes), "first_seed": episodes[0].seed, "last_seed": episodes[-1].seed}
    return {"task": task} | seeds | {name: round(number, 4) for name, number in numbers.items()}


def seed_range(text: str) -> range:
    """Parse FIRST:END.

    Raises:
        UserError: it has another form, is empty, or includes test or validation seeds.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not FIRST_SEED <= int(match[1]) < int(match[2]) <= 2**32:
        raise UserError(
            f"--seeds: given {text!r}, allowed: FIRST:END such as 300000:300400, from {FIRST_SEED} on; below are test "
            "and validation seeds"
        )
    return range(int(match[1]), int(match[2]))


if __name__ == "__main__":
    program(main)
