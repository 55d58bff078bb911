"""The tables of a campaign: reports/faults.csv with a row for each trial, and reports/faults.md."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime

from pipeline.utils.atomic import write_text
from pipeline.utils.provenance import hardware
from tests.faults.bench import DRIVERS
from tests.faults.plan import KINDS, Row
from tests.project import ROOT

ABOUT = {
    "kill": "SIGKILL, at a random instant, to the driver or to any process below it",
    "interrupt": "Ctrl-C or SIGTERM at a random instant",
    "disk": "a disk that is full while a stage trains, rolls out or tabulates, or while DVC writes",
    "read-only": "folders that may not be written",
    "memory": "a limit of address space, or of a control group, which kills",
    "twice": "a second run while one is at work",
    "clock": "files from the future, or a run that goes on two days before it was interrupted",
    "mlflow": "MLflow's database locked, corrupt or removed, before or during a run",
}


def write_tables(rows: Sequence[Row], seed: int) -> None:
    """Write reports/faults.csv and reports/faults.md."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(ROOT / "reports" / "faults.csv", text.getvalue())
    write_text(ROOT / "reports" / "faults.md", markdown(rows, seed, about_machine()))


def about_machine() -> str:
    """Return the machine and the date in one line."""
    return f"{hardware()}, {datetime.now(tz=UTC):%Y-%m-%d}"


def markdown(rows: Sequence[Row], seed: int, machine: str) -> str:
    """Return the report: survived trials by kind and driver, examples of error messages, and failed trials."""
    survived = sum(row.verdict == "survived" for row in rows)
    lines = [
        "# Faults",
        "",
        f"`make faults` disturbs runs of the whole pipeline at tiny settings. {survived} of {len(rows)} trials were "
        "survived: no process was left behind, every committed file held what it had held before or what a whole run "
        "makes, a run that failed said so in a line, and the same command again ended with the undisturbed run's "
        "files, to the byte.",
        "",
        f"{machine}; {_commits(rows)}; seed {seed}; {sum(row.seconds for row in rows) / 60:.0f} minutes. "
        "Every trial is a row of [faults.csv](faults.csv).",
        "",
        f"| fault | {' | '.join(DRIVERS)} |",
        f"| --- |{' --- |' * len(DRIVERS)}",
    ]
    for kind in [kind for kind in KINDS if any(row.kind == kind for row in rows)]:
        cells = [_cell([row for row in rows if (row.kind, row.driver) == (kind, driver)]) for driver in DRIVERS]
        lines.append(f"| {ABOUT[kind]} | {' | '.join(cells)} |")
    lines += ["", "What a run says, by example:", "", "| fault | line |", "| --- | --- |"]
    for kind in KINDS:
        example = next(
            (row for row in rows if row.kind == kind and row.exit and row.said and row.verdict == "survived"), None
        )
        if example:
            lines.append(f"| {example.what} | `{example.said.replace('|', '/')}` |")
    wrong = [row for row in rows if row.verdict != "survived"]
    if wrong:
        lines += [
            "",
            "Not survived, or not tried:",
            "",
            "| trial | driver | fault | verdict |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {row.kind} {row.number} | {row.driver} | {row.what or row.variant} | {row.verdict} |" for row in wrong
        ]
    return "\n".join(lines) + "\n"


def _commits(rows: Sequence[Row]) -> str:
    """Return the commits of the trials; a campaign resumed later may have several."""
    counts = Counter(row.commit for row in rows)
    return "commit " + ", ".join(f"{commit} ({count} trials)" for commit, count in counts.most_common())


def _cell(rows: Sequence[Row]) -> str:
    skipped = sum(row.verdict.startswith("skipped") for row in rows)
    tried = len(rows) - skipped
    survived = sum(row.verdict == "survived" for row in rows)
    return f"{survived} of {tried}" + f", {skipped} skipped" * bool(skipped) if rows else "—"
