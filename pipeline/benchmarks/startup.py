"""What is waited for before anything is computed: DVC finding nothing to do, and the imports of a stage."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

from pipeline.benchmarks.contest import Contest, DiffersError, Floor, Seconds, timed

NOTHING_TO_DO_S = 4.0
IMPORTS_S = 2.5
PROGRAMS = {
    "stages.pretrain": "torch",
    "stages.evaluate_rollouts": "torch",
    "stages.evaluate_fid": "torch, torchvision",
    "stages.tabulate": "pandas, matplotlib",
}
"""Stages, and what they cannot do without."""

_READING = """
from time import perf_counter
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.utils.serialize import load_yaml
with Repo() as repo:
    stages = sum(any(isinstance(d, ParamsDependency) for d in stage.deps) for stage in repo.index.stages)
begin = perf_counter()
for _ in range(stages):
    load_yaml("params.yaml")
print(perf_counter() - begin)
"""


def contests() -> Iterator[Contest]:
    """``dvc repro`` and ``make repro`` on a tree that is up to date, and stages' programs up to their first line."""
    reading = Floor(
        "DVC's reading of params.yaml, anew for every stage, and nothing else",
        lambda: float(_run([sys.executable, "-c", _READING])),
    )
    for name, module, floor in (
        ("dvc", ["dvc", "repro"], reading),
        ("make", ["pipeline.repro"], _imported("dvc.repo")),
    ):
        repro = partial(_run, [sys.executable, "-m", *module])
        yield _limited(f"{name} repro with nothing to do", NOTHING_TO_DO_S, repro, _up_to_date, 3, floor)
    for program, packages in PROGRAMS.items():
        help_text = partial(_run, [sys.executable, "-m", program, "--help"])
        floor = _imported(packages)
        yield _limited(f"imports of {program}", IMPORTS_S, help_text, lambda: "prints its help", 3, floor)


def _imported(packages: str) -> Floor:
    command = [sys.executable, "-c", f"import {packages}"]
    return Floor(
        f"`import {packages}` and nothing else", lambda: median(timed(partial(_run, command)) for _ in range(3))
    )


def _limited(
    work: str, limit_s: float, run: Callable[[], object], same: Callable[[], str], count: int, floor: Floor
) -> Contest:
    """A contest with a limit in place of a peer."""

    def turns(count: int) -> list[Seconds]:
        return [(timed(run), limit_s) for _ in range(count)]

    return Contest(work, f"limit of {limit_s:g} s", 1.0, same, turns, count, floor)


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
