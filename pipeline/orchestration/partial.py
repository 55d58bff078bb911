"""Make tables of the available results after a failed run, in a separate folder; the last complete ones stay."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.orchestration.plan import Plan
from pipeline.utils.atomic import make_folder, write_text

TABLES = (
    *("tabulate", "tabulate_offline", "report_stability", "draw", "tabulate_images"),
    *("study_table", "one_step_table"),
)
"""Stages that accept missing results; each comes after the stages whose outputs it reads."""

Run = Callable[[list[str], Path], object]
"""Runs a module of this project with arguments, in a folder."""


def write_unmade(path: Path, plan: Plan, failed: Sequence[str], not_run: Sequence[str]) -> None:
    """Write to ``path`` the outputs of failed and skipped stages, and the commands of the skipped ones."""
    unmade = {
        "outs": [out for name in (*failed, *not_run) for out in plan.outs[name]],
        "commands": {name.rpartition(":")[2]: plan.commands[name] for name in not_run},
    }
    write_text(path, json.dumps(unmade, indent=1))


def make_partial(root: Path, scale: str, folder: str, unmade: Path, run: Run) -> None:
    """Make the tables listed in ``unmade`` (see ``write_unmade``), in ``folder`` of the reports of ``scale``.

    Their stages run in a copy of the project, made of links, without outdated reports.
    """
    left = json.loads(unmade.read_text(encoding="utf-8"))
    commands = [
        shlex.split(command)
        for kind in TABLES
        for name, command in left["commands"].items()
        if name.partition("@")[0] == kind
    ]
    if not commands:
        return
    copy, reports = root / ".flowtune" / folder, Path("reports", scale)
    shutil.rmtree(copy, ignore_errors=True)
    try:
        _link(root, copy, reports, set(left["outs"]), leave_out=folder)
        for command in commands:
            run(command[command.index("-m") + 1 :], copy)
        made = [path for path in (copy / reports).rglob("*") if path.is_file() and not path.is_symlink()]
        place = root / reports / folder
        shutil.rmtree(place, ignore_errors=True)
        for path in made:
            target = place / path.relative_to(copy / reports)
            make_folder(target.parent)
            shutil.move(path, target)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    if made:
        print(
            f"{reports / folder}: tables of the available rows; {reports} keeps those of the last complete run",
            file=sys.stderr,
        )


def remove_partial(root: Path, scale: str, folder: str) -> None:
    """Remove the tables of ``make_partial`` after a complete run, which has made all tables."""
    place = Path("reports", scale, folder)
    if (root / place).exists():
        shutil.rmtree(root / place)
        print(f"{place}: removed, the tables in {place.parent} are complete")


def _link(root: Path, copy: Path, reports: Path, stale: set[str], *, leave_out: str) -> None:
    """Fill ``copy`` with links to the settings, the data and the ``reports`` that are not ``stale``."""
    make_folder(copy / reports)
    for name in ("params.yaml", "data"):
        (copy / name).symlink_to(root / name)
    for path in (root / reports).rglob("*"):
        place = path.relative_to(root)
        if path.is_file() and place.as_posix() not in stale and leave_out not in place.parts:
            make_folder((copy / place).parent)
            (copy / place).symlink_to(path)
