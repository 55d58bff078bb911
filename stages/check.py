"""Stage ``check``: validate params.yaml, so that a misspelt key fails before any work instead of being ignored."""

from pathlib import Path

from pipeline.orchestration.stage import program
from pipeline.settings import schema
from pipeline.utils.atomic import write_text


def main() -> None:
    schema.load(Path("params.yaml"))
    # A constant: what depends on this file re-runs when its own settings change, not whenever any setting does.
    write_text(Path("data/checked.txt"), "params.yaml is valid\n")


if __name__ == "__main__":
    program(main)
