"""Look up the measured memory of stages, so that they run side by side only where memory suffices.

``python -m pipeline.orchestration.needs`` writes the table ``needs.csv`` beside this file from MLflow's runs of this
project (``--root``: of another). It holds the peak of resident memory for each program, scale and task, including the
processes that a stage starts. Other rows stay.
"""

import argparse
import csv
import io
import os
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline.orchestration.plan import Program
from pipeline.orchestration.stage import PEAK_METRIC
from pipeline.tracking.experiment import finished_runs
from pipeline.utils.atomic import write_text
from pipeline.utils.environment import project_root
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import free_memory
from pipeline.utils.memory import resident

TABLE = Path(__file__).with_suffix(".csv")

MB, GB = 10**6, 10**9


@dataclass(frozen=True, order=True)
class Need:
    """Row of the table: the highest peak in ``runs`` runs of a program or report, and the machine of that run."""

    program: str
    scale: str
    task: str
    peak_mb: int
    runs: int
    machine: str


def read_table(path: Path = TABLE) -> list[Need]:
    """Read the table of needs."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Need(row["program"], row["scale"], row["task"], int(row["peak_mb"]), int(row["runs"]), row["machine"])
        for row in rows
    ]


def need_of(programs: Iterable[Program], table: Iterable[Need]) -> int:
    """Return the bytes that a stage needs for ``programs``, one after another: the peak at its scale and task.

    Without a measurement, it is the peak of the same program at any scale and task, else the highest of all.
    """
    table, most = list(table), 0
    for program in programs:
        kind = _kind(program)
        same = [need for need in table if (need.program, need.scale, need.task) == kind]
        alike = [need for need in table if need.program == kind[0]]
        most = max([most, *(need.peak_mb for need in same or alike or table)])
    return most * MB


class Room:
    """Free memory that stages running side by side share."""

    def __init__(self, needs: Mapping[str, int]) -> None:
        """Take the bytes that each stage needs, by name."""
        self._needs = needs

    def lack(self, name: str, running: Collection[str]) -> str | None:
        """Return why stage ``name`` must wait for memory; None if it may start, as it always may alone.

        Args:
            running: the stages running below this process, which may not have taken all their memory yet.
        """
        if not running or not self._needs[name]:
            return None
        yet = max(0, sum(self._needs[other] for other in running) - resident(os.getpid()))
        free = free_memory() - yet
        if self._needs[name] <= free:
            return None
        needs, left = (f"{size / GB:.1f} GB" for size in (self._needs[name], max(0, free)))
        return f"waits for memory: it needs {needs}, and {left} are free beside {', '.join(sorted(running))}"


def _kind(program: Program) -> tuple[str, str, str]:
    options = dict(zip(program.arguments, program.arguments[1:], strict=False))
    return program.work, options.get("--scale", ""), options.get("--task", "")


def measured(root: Path) -> list[Need]:
    """Return the needs measured by the recorded runs of ``root``; raise a ``UserError`` if no run has a peak."""
    highest: dict[tuple[str, str, str], Need] = {}
    for run in finished_runs(root):
        if PEAK_METRIC in run.data.metrics and "command" in run.data.tags:
            _, _, module, *arguments = shlex.split(run.data.tags["command"])
            kind = _kind(Program(module, arguments))
            peak, before = round(run.data.metrics[PEAK_METRIC]), highest.get(kind)
            machine = run.data.tags["hardware"]
            if before and before.peak_mb >= peak:
                peak, machine = before.peak_mb, before.machine
            highest[kind] = Need(*kind, peak, before.runs + 1 if before else 1, machine)
    if not highest:
        raise UserError(f"{root}: MLflow has no recorded memory of stages; run `make repro` first")
    return list(highest.values())


def write_table(needs: Iterable[Need], path: Path = TABLE) -> None:
    """Write the table; ``needs`` replace the rows of the same program, scale and task."""
    known = read_table(path) if path.exists() else []
    rows = {(need.program, need.scale, need.task): need for need in [*known, *needs]}
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Need)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(need) for need in sorted(rows.values()))
    write_text(path, text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=project_root(), help="project whose runs are read")
    needs = measured(parser.parse_args().root.resolve())
    write_table(needs)
    print(f"{TABLE}: {len(needs)} rows of {sum(need.runs for need in needs)} runs")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
