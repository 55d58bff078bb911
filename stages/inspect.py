"""Describe a data set of demonstrations, and print the block of params.yaml that learns from it.

``python -m stages.inspect PATH`` detects a LeRobotDataset v2.1 or v3.0, robomimic's HDF5, a Minari data set, a zarr
replay buffer or an npz file.
"""

import argparse
from pathlib import Path

from pipeline.orchestration.stage import program
from pipeline.tasks.formats.description import describe
from pipeline.tasks.formats.reading import open_recording


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    print(describe(open_recording(path), path))


if __name__ == "__main__":
    program(main)
