"""What is waited for before anything is computed: DVC finding nothing to do, and the imports of a stage."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.perf.contest import Contest, DiffersError, Floor, Seconds, median_seconds, timed

NOTHING_TO_DO_S = 3.0
IMPORTS_S = 2.5
PROGRAMS = {
    "stages.pretrain": "torch",
    "stages.evaluate_rollouts": "torch",
    "stages.evaluate_fid": "torch_fidelity, pandas",
    "stages.tabulate": "pandas",
}
"""Stages, and packages that they use."""

_COLLECTING = """
from dvc.repo import Repo
with Repo() as repo:
    repo.index.graph
"""


def contests() -> Iterator[Contest]:
    """``dvc repro`` and ``make repro`` on a tree that is up to date, and stages' programs up to their first line."""
    collecting = Floor(
        "DVC's `Repo().index.graph`, which reads every dvc.yaml and dvc.lock, and nothing else",
        lambda: median_seconds(partial(_run, [sys.executable, "-c", _COLLECTING]), 1),
    )
    for name, module in (("dvc", ["dvc", "repro"]), ("make", ["pipeline.orchestration.repro"])):
        repro = partial(_run, [sys.executable, "-m", *module])
        yield _limited(f"{name} repro with nothing to do", NOTHING_TO_DO_S, repro, _up_to_date, collecting, warm_ups=0)
    for program, packages in PROGRAMS.items():
        help_text = partial(_run, [sys.executable, "-m", program, "--help"])
        floor = _imported(packages)
        yield _limited(f"imports of {program}", IMPORTS_S, help_text, lambda: "prints its help", floor)


def _imported(packages: str) -> Floor:
    command = [sys.executable, "-c", f"import {packages}"]
    return Floor(f"`import {packages}` and nothing else", lambda: median_seconds(partial(_run, command), 1))


def _limited(
    work: str, limit_s: float, run: Callable[[], object], same: Callable[[], str], floor: Floor, warm_ups: int = 1
) -> Contest:
    """A contest with a limit in place of a peer."""

    def turns(count: int) -> list[Seconds]:
        return [(timed(run), limit_s) for _ in range(count)]

    return Contest(work, f"limit of {limit_s:g} s", 1.0, same, turns, 3, warm_ups, floor)


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


def _up_to_date() -> str:
    if (
        not Path("dvc.lock").exists()
        or subprocess.run(
            [sys.executable, "-m", "dvc", "status", "--quiet", "dvc.yaml"], capture_output=True, check=False
        ).returncode
    ):
        raise DiffersError("this tree is not up to date, `make repro` makes it so")
    return "changes nothing"
