"""Ship a selected checkpoint as the model that the coupling study starts from with one training seed.

Not part of a DAG: training gives other last bits on another kind of CPU, and every row of a study needs the same start,
so the models are files of the repository, as demonstrations are, with weights in float16. Another one is made by

    python -m stages.pretrain --scale lab --task pusht --replica 1
    python -m stages.select_checkpoint --scale lab --task pusht --replica 1
    python -m stages.study_base --scale lab --task pusht --train-seed 1
"""

import argparse
from pathlib import Path

from pipeline.orchestration.stage import program, stage
from pipeline.settings.inputs import inputs_of
from pipeline.settings.paths import TaskFiles
from pipeline.training.checkpoint import save_policy
from pipeline.training.study import load_base


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
    with stage(inputs_of("stages/study_base.py", {}), label, deps=[model], outs=[out]):
        policy, record = load_base(model, scale, task, seed)
        save_policy(out, policy, record, half=True)


if __name__ == "__main__":
    program(main)
