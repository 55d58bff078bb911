"""Log of a training run, kept through interruptions and written as CSV at the end."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pipeline.utils.atomic import make_folder, write_text


class Sink(Protocol):
    """Destination of metrics during training, such as a run in MLflow."""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record ``metrics`` of ``step``."""


class TrainingLog:
    """Rows of metrics by step. A step that a resume repeats replaces its row.

    NaN means not measured: the sink does not get it, and the CSV has an empty field.

    Args:
        path: JSON lines, appended to; a torn last line is dropped. sink: gets every row too.
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
        """Write all rows atomically, sorted by step, with ``constants`` as the first columns."""
        measured = [
            {name: "" if math.isnan(value) else value for name, value in self.rows[step].items()}
            for step in sorted(self.rows)
        ]
        write_rows(path, [{**constants, **row} for row in measured])


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write ``rows``, at least one, as CSV with the columns of the first, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
