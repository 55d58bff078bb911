"""Choose the base model of a task among the checkpoints of its pretraining.

Robot tasks use the rule in params.yaml, on validation seeds or held-out episodes (stage select_checkpoint).
Images use the distance on validation sampling seeds, measured for all checkpoints (select_image_checkpoint).
"""

import argparse

from pipeline.orchestration.kinds import run_kind
from pipeline.orchestration.stage import program
from pipeline.settings.images import SHAPES
from pipeline.training.job import Asked
from pipeline.utils.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True, help="a block of params.yaml")
    parser.add_argument("--replica", type=int, help="of the models trained with this seed, beside that in params.yaml")
    arguments = parser.parse_args()
    image = arguments.task in SHAPES
    if image and arguments.replica is not None:
        raise UserError(f"--replica: given {arguments.replica}, allowed for robot tasks alone")
    asked = Asked(arguments.scale, arguments.task, replica=arguments.replica)
    run_kind("select_image_checkpoint" if image else "select_checkpoint", asked)


if __name__ == "__main__":
    program(main)
