"""Ship a selected checkpoint as the model that the coupling study starts from with one training seed.

Not part of a DAG: training gives other last bits on another kind of CPU, and every row of a study needs the same start,
so the models are files of the repository, as demonstrations are, with weights in float16. Another one is made by

    python -m stages.pretrain --scale lab --task pusht --replica 1
    python -m stages.select_checkpoint --scale lab --task pusht --replica 1
    python -m stages.study_base --scale lab --task pusht --train-seed 1
"""

import argparse
from pathlib import Path

from pipeline.errors import UserError
from pipeline.layout import TaskFiles
from pipeline.stage import program, stage
from pipeline.training.checkpoint import load_policy, save_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--train-seed", required=True, type=int)
    parser.add_argument("--model", type=Path, help="a file other than the selected checkpoint of that replica")
    arguments = parser.parse_args()
    scale, task, seed = arguments.scale, arguments.task, arguments.train_seed
    model = arguments.model or TaskFiles(scale, task, seed).base
    out = TaskFiles(scale, task).study_base(seed)
    label = f"study_base-{scale}-{task}-seed{seed}"
    with stage("stages/study_base.py", label, params={}, deps=[model], outs=[out]):
        policy, record = load_policy(model)
        have, want = (
            (record.scale, record.task, record.method, record.train_seed, record.nfe),
            (scale, task, "fm", seed, 0),
        )
        if have != want:
            raise UserError(f"{model}: a model of (scale, task, method, training seed, NFE) {have}, allowed: {want}")
        save_policy(out, policy, record, half=True)


if __name__ == "__main__":
    program(main)
