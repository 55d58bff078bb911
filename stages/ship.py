"""Copy a task's trained models into the repository: ``python -m stages.ship --scale lab --task cifar10``, then commit.

A fresh clone then uses them in place of training, see ``pipeline.utils.shipped``. Stages that have not run here since
the last time stay unchanged.
"""

import argparse

from pipeline.orchestration.stage import program
from pipeline.utils.shipped import folder, ship


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    for stage, added in ship(arguments.scale, arguments.task):
        print(f"{stage}: {', '.join(map(str, added)) or 'nothing new'}")
    place = folder(arguments.scale, arguments.task)
    total = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    print(f"{place}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    program(main)
