"""Make the starter demonstrations: roll a trained policy out and keep the episodes that it solves.

The program is not part of the DAG, since its result is shipped. To make them again:

    python -m stages.demonstrate --checkpoint data/checkpoints/lab/pusht/fm-nfe1.safetensors --nfe 16 \
        --seeds 300000:300500 --most 200 --out data/demonstrations/pusht_starter.npz
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np

from pipeline.evaluation.demonstrate import solved_episodes
from pipeline.evaluation.protocol import find_env_factory
from pipeline.orchestration.stage import program
from pipeline.training.checkpoint import load_policy
from pipeline.utils.atomic import replacing, write_text
from pipeline.utils.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--nfe", type=int, default=16)
    parser.add_argument("--evaluation", default="pusht_b", help="whose initial states are drawn")
    parser.add_argument("--seeds", required=True, help="FIRST:END, END excluded; neither test nor validation seeds")
    parser.add_argument("--most", type=int, default=200, help="keep at most so many episodes, the first by seed")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    first, _, end = arguments.seeds.partition(":")
    if not (first.isdigit() and end.isdigit() and 300_000 <= int(first) < int(end)):
        raise UserError(
            f"--seeds: given {arguments.seeds!r}, allowed: FIRST:END such as 300000:300600, from 300000 on; below are "
            "test and validation seeds"
        )
    seeds = range(int(first), int(end))

    policy, metadata = load_policy(arguments.checkpoint)
    env_factory = find_env_factory(metadata.load_task(), metadata.task, arguments.evaluation)
    solved = solved_episodes(policy.acting(arguments.nfe), env_factory, seeds)
    kept = solved[: arguments.most]
    if not kept:
        raise UserError(f"{arguments.checkpoint}: solved none of {len(seeds)} episodes")
    with replacing(arguments.out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            state=np.concatenate([episode.state for episode in kept]).astype(np.float32),
            action=np.concatenate([episode.action for episode in kept]),
            episode_ends=np.cumsum([len(episode.action) for episode in kept]),
            seed=np.array([episode.seed for episode in kept]),
            max_score=np.array([episode.max_score for episode in kept], dtype=np.float32),
        )
    digest = hashlib.sha256(arguments.out.read_bytes()).hexdigest()
    write_text(arguments.out.with_name(arguments.out.name + ".sha256"), f"{digest}  {arguments.out.name}\n")
    steps = sum(len(episode.action) for episode in kept)
    print(f"{len(solved)} of {len(seeds)} episodes solved; {len(kept)} kept, {steps} steps → {arguments.out}")


if __name__ == "__main__":
    program(main)
