"""Run a part of the theory, on toy problems: train Figure 1's models, or measure the bounds of Theorem 1."""

import argparse

from pipeline.orchestration.kinds import run_kind
from pipeline.orchestration.stage import program
from pipeline.training.job import Asked

PARTS = {"train": ("train_toys", "toys"), "gap": ("measure_gap", "gap")}
"""Name → kind of stage, and its block of params.yaml."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--scale", required=True)
    arguments = parser.parse_args()
    kind, block = PARTS[arguments.part]
    run_kind(kind, Asked(arguments.scale, block))


if __name__ == "__main__":
    program(main)
