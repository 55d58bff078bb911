"""Time the overhead around the computation: ``dvc repro`` with nothing to do or of one stage, and a stage's imports."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.perf.comparison import Comparison, DiffersError, Floor, Seconds, median_seconds, timed
from pipeline.settings.schema import load

NOTHING_TO_DO_S = 3.0
STAGE_OVERHEAD_S = 1.0
IMPORTS_S = 2.5
PROGRAMS = {
    "pipeline.kinds.pretrain": "torch",
    "pipeline.kinds.evaluate_rollouts": "torch",
    "pipeline.kinds.evaluate_fid": "torch_fidelity, pandas",
    "stages.report": "pandas",
}
"""Modules that stages import before their work → packages that they use."""

_COLLECTING = """
from dvc.repo import Repo
with Repo() as repo:
    repo.index.graph
"""


def comparisons() -> Iterator[Comparison]:
    """Yield the comparisons: ``dvc repro`` and ``make repro`` with nothing to do, and the start of stages' programs."""
    collecting = Floor(
        "DVC's `Repo().index.graph`, which reads every dvc.yaml and dvc.lock, and nothing else",
        lambda: median_seconds(partial(_run, [sys.executable, "-c", _COLLECTING]), 1),
    )
    for name, module in (("dvc", ["dvc", "repro"]), ("make", ["pipeline.orchestration.repro"])):
        repro = partial(_run, [sys.executable, "-m", *module])
        yield _limited(f"{name} repro with nothing to do", NOTHING_TO_DO_S, repro, _up_to_date, collecting, warm_ups=0)
    yield _overhead_of_a_stage()
    for program, packages in PROGRAMS.items():
        imports = partial(_run, [sys.executable, "-c", f"import {program}"])
        floor = _imported(packages)
        yield _limited(f"imports of {program}", IMPORTS_S, imports, lambda: "imports them", floor)


def _overhead_of_a_stage() -> Comparison:
    """Make the comparison for the overhead of ``dvc repro`` of one stage, whose program writes equal files."""
    stage, scale = "tabulate_settings", load().scale
    repro = partial(_run, [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", f"{stage}@{scale}"])
    program = partial(_run, [sys.executable, "-m", "stages.report", stage, "--scale", scale])

    def turns(count: int) -> list[Seconds]:
        return [(timed(repro) - timed(program), STAGE_OVERHEAD_S) for _ in range(count)]

    limit = f"limit of {STAGE_OVERHEAD_S:g} s"
    return Comparison(f"dvc repro of {stage}, its program apart", limit, 1.0, _up_to_date, turns, 5)


def _imported(packages: str) -> Floor:
    command = [sys.executable, "-c", f"import {packages}"]
    return Floor(f"`import {packages}` and nothing else", lambda: median_seconds(partial(_run, command), 1))


def _limited(
    work: str, limit_s: float, run: Callable[[], object], same: Callable[[], str], floor: Floor, warm_ups: int = 1
) -> Comparison:
    """Make a comparison with a time limit instead of a peer."""

    def turns(count: int) -> list[Seconds]:
        return [(timed(run), limit_s) for _ in range(count)]

    return Comparison(work, f"limit of {limit_s:g} s", 1.0, same, turns, 3, warm_ups, floor)


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
