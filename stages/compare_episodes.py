"""Compare two files of episodes: the paired difference in score and success of each evaluation, with 95 % intervals.

    python -m stages.compare_episodes episodes.csv reports/lab/episodes/pusht-ft_fm-nfe1.csv

The difference is the first minus the second, on the seeds of both; repeats are averaged within a seed. It shows how
results depend on the machine, the precision or the training seed.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.statistics import Interval, paired_difference
from pipeline.orchestration.stage import program
from pipeline.reporting.episodes import episode_table
from pipeline.utils.errors import UserError

MEASURES = {"max": "max score", "success": "success"}


@dataclass(frozen=True)
class Comparison:
    """Measure of an evaluation: its mean over ``seeds`` in either file, and the paired difference."""

    evaluation: str
    measure: str
    seeds: int
    first: float
    second: float
    difference: Interval

    def __str__(self) -> str:
        return (
            f"{self.evaluation}: {MEASURES[self.measure]} {self.first:.3f} and {self.second:.3f}, difference "
            f"{self.difference:+.3f}, {self.seeds} seeds"
        )


def compared(first: Path, second: Path) -> Iterator[Comparison]:
    """Yield the comparison of every measure of every evaluation in both files.

    Raises:
        UserError: a file is not one of whole episodes, or the files share no seed of any evaluation.
    """
    one, other = episode_table(first), episode_table(second)
    found = False
    for evaluation in one["evaluation"].unique():
        for measure in MEASURES:
            means = [table[table["evaluation"] == evaluation].groupby("seed")[measure].mean() for table in (one, other)]
            a, b = means[0].align(means[1], join="inner")
            if a.empty:
                continue
            found = True
            seeds = a.index.to_numpy()
            difference = paired_difference(a.to_numpy(), b.to_numpy(), seeds, seeds)
            yield Comparison(evaluation, measure, len(seeds), float(a.mean()), float(b.mean()), difference)
    if not found:
        raise UserError(f"{first} and {second} share no seed of any evaluation, so that nothing can be paired")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    arguments = parser.parse_args()
    for comparison in compared(arguments.first, arguments.second):
        print(comparison)


if __name__ == "__main__":
    program(main)
