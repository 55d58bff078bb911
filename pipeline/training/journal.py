"""What a training run writes down while it runs, kept through interruptions and written out as CSV at the end."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pipeline.utils.atomic import make_folder, write_text


class Sink(Protocol):
    """Where metrics are shown while they come in; a run in MLflow, for one."""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Show ``metrics`` of ``step``."""


class TrainingLog:
    """Rows of metrics by step. A step seen again after a resume replaces its row, and is the same if nothing changed.

    NaN means not measured: the sink is not shown it, and the CSV has an empty field.

    Args:
        path: JSON lines, appended to; a torn last line is ignored.
        sink: shown every row too.
    """

    def __init__(self, path: Path, sink: Sink) -> None:
        make_folder(path.parent)
        self._path = path
        self._sink = sink
        self.rows: dict[int, dict[str, float]] = {}
        if path.exists():
            whole = path.read_text(encoding="utf-8")
            whole = whole[: whole.rfind("\n") + 1]
            write_text(path, whole)
            self.rows = {row["step"]: row for row in map(json.loads, whole.splitlines())}

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        row = {"step": step, **metrics}
        self.rows[step] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._sink.log({name: value for name, value in metrics.items() if not math.isnan(value)}, step)

    def write_csv(self, path: Path, **constants: object) -> None:
        """Write all rows, sorted by step and each begun by ``constants``, atomically."""
        measured = [
            {name: "" if math.isnan(value) else value for name, value in self.rows[step].items()}
            for step in sorted(self.rows)
        ]
        write_rows(path, [{**constants, **row} for row in measured])


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write ``rows``, at least one, of the columns of the first, as CSV, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
