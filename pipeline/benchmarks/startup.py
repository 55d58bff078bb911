"""What is waited for before anything is computed: DVC finding nothing to do, and the imports of a stage."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.benchmarks.contest import Contest, DiffersError, Seconds, timed

NOTHING_TO_DO_S = 4.0
IMPORTS_S = 2.5


def contests() -> Iterator[Contest]:
    """``dvc repro`` and ``make repro`` on a tree that is up to date, and stages' programs up to their first line."""
    for name, module in (("dvc", ["dvc", "repro"]), ("make", ["pipeline.repro"])):
        repro = partial(_run, [sys.executable, "-m", *module])
        yield _limited(f"{name} repro with nothing to do", NOTHING_TO_DO_S, repro, _up_to_date, 3)
    for program in ("stages.pretrain", "stages.evaluate_rollouts", "stages.evaluate_fid", "stages.tabulate"):
        help_text = partial(_run, [sys.executable, "-m", program, "--help"])
        yield _limited(f"imports of {program}", IMPORTS_S, help_text, lambda: "prints its help", 3)
    torch_alone = partial(_run, [sys.executable, "-c", "import torch"])
    yield _limited("imports of torch alone", IMPORTS_S, torch_alone, lambda: "the floor of stages that train", 3)


def _limited(work: str, limit_s: float, run: Callable[[], object], same: Callable[[], str], count: int) -> Contest:
    """A contest with a limit in place of a peer."""

    def turns(count: int) -> list[Seconds]:
        return [(timed(run), limit_s) for _ in range(count)]

    return Contest(work, f"limit of {limit_s:g} s", 1.0, same, turns, count)


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _up_to_date() -> str:
    if (
        not Path("dvc.lock").exists()
        or subprocess.run(
            [sys.executable, "-m", "dvc", "status", "--quiet", "dvc.yaml"], capture_output=True, check=False
        ).returncode
    ):
        raise DiffersError("this tree is not up to date, `make repro` makes it so")
    return "changes nothing"
