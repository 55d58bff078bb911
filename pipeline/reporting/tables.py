"""Read tables of results from CSV files, check them, and show them as Markdown; ``utils.atomic`` writes the files."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import pandas as pd

from pipeline.evaluation.statistics import Interval
from pipeline.settings.paths import Entry, ScaleReports
from pipeline.settings.schema import ScaleSettings, TaskSettings
from pipeline.utils.errors import UserError

METHOD_NAMES = {
    "random": "Random actions",
    "nearest_demo": "Nearest demonstration",
    "persistence": "Persistence",
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "fm": "FM continued",
    "ft_fm": "FT-FM",
    "resft_fm": "ResFT-FM (ControlSynth)",
    "resft_fm_unet": "ResFT-FM (U-Net)",
}
NO_TITLES: Mapping[str, str] = MappingProxyType({})


class Begin(Protocol):
    """Begins a stage that reads ``deps`` and writes ``outs``, CSV, Markdown and PNG files, each PNG with its SVG."""

    def __call__(self, deps: Sequence[Path], outs: Sequence[Path]) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Request:
    """A request to the function ``report`` of a module of this package.

    Attributes:
        settings: those that the stage may read.
        reports: of the scale.
        task: that the report is about; empty: it is about all of the scale.
        others: further scales, whose results are in it too.
        begin: makes the context in which files are read and written.
    """

    settings: ScaleSettings
    reports: ScaleReports
    task: str
    others: Sequence[str]
    begin: Begin


def read_csv(path: Path, header: str = "", remedy: str = "") -> pd.DataFrame:
    """Read a CSV file, in which only an empty field is a missing value: "none" and "nan" are text.

    Args:
        header: columns that it must have, beside rows, separated by commas; empty: it may be any table.
        remedy: what to do where it lacks them.

    Raises:
        UserError: it cannot be read, or lacks rows or a column.
    """
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error
    return require(table, header, path, remedy) if header else table


def require(table: pd.DataFrame, header: str, name: object, remedy: str = "") -> pd.DataFrame:
    """Return the ``table`` called ``name`` if it has rows and the columns of ``header``; arguments as of ``read_csv``.

    Raises:
        UserError: it lacks them.
    """
    end = f"; {remedy}" if remedy else ""
    for column in header.split(","):
        if column not in table.columns:
            raise UserError(f"{name}: column {column} is missing, expected {header}{end}")
    if table.empty:
        raise UserError(f"{name}: has no rows{end}")
    return table


def one_of(table: pd.DataFrame, column: str, name: object) -> object:
    """The one value in ``column`` of the table called ``name``.

    Raises:
        UserError: there are several.
    """
    values = table[column].unique()
    if len(values) != 1:
        raise UserError(f"{name}: {column}: given {', '.join(map(str, values))}, allowed: one for all")
    return values[0]


def span(values: pd.Series) -> str:
    """The one value, or the lowest and the highest."""
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def interval_columns(interval: Interval | None, mean: str, bounds: str | None = None) -> dict[str, float]:
    """``interval`` as the columns ``mean``, ``<bounds>_low`` and ``<bounds>_high``; none without an interval.

    Args:
        bounds: as ``mean`` by default; empty: the columns are called low and high.
    """
    if interval is None:
        return {}
    return dict(zip(_columns(mean, bounds), (interval.mean, interval.low, interval.high), strict=True))


def interval_cell(row: pd.Series, mean: str, style: str = ".3f", bounds: str | None = None) -> str:
    """The columns of ``interval_columns`` as ``+0.12 [+0.09, +0.15]``; a dash where there is no mean."""
    return format(Interval(*(row[column] for column in _columns(mean, bounds))), style)


def _columns(mean: str, bounds: str | None) -> list[str]:
    name = mean if bounds is None else bounds
    return [mean, *(f"{name}_{side}".removeprefix("_") for side in ("low", "high"))]


def markdown_table(
    rows: Iterable[Mapping[str, object]] | Iterable[Sequence[object]], head: Sequence[str] | None = None
) -> str:
    """``rows`` as a Markdown table; empty where there are none and no ``head``.

    Args:
        rows: mappings from column to cell, or cells alone. head: the columns; by default those of the first row.
    """
    found = list(rows)
    columns = list(head or (found[0] if found else ()))
    lines = [row.values() if isinstance(row, Mapping) else row for row in found]
    return "\n".join(
        f"| {' | '.join(map(str, line))} |" for line in (columns, ["---"] * len(columns), *lines) if columns
    )


def document(*parts: str) -> str:
    """The ``parts`` that are not empty, as paragraphs of a Markdown file."""
    return "\n\n".join(part for part in parts if part) + "\n"


def missing_list(reasons: Iterable[str]) -> str:
    """A list of rows that are missing and of the reasons; empty where there are none."""
    items = [f"- {reason}." for reason in reasons]
    return "\n".join(["**Missing rows**", "", *items]) if items else ""


def missing_rows(reports: Path, expected: Sequence[Entry]) -> dict[Entry, str]:
    """Find the rows of ``expected`` without episodes, each with the reason."""
    return {
        entry: f"`{entry.episodes(reports).relative_to(reports)}` was not made: its evaluation, or a stage before it, "
        "has not finished"
        for entry in expected
        if not entry.episodes(reports).exists()
    }


def training_cells(row: pd.Series) -> dict[str, str]:
    """Scale, data, length and precision of the training of a row's model."""
    return {
        "Scale": row["scale"],
        "Data set": row["dataset"],
        "Training steps": str(row["train_steps"]),
        "Precision": row["precision"] or "—",
    }


Blocks = Mapping[str, TaskSettings]
"""Blocks of params.yaml by name; of their settings ``task``, ``custom`` and ``title`` are read."""


def task_titles(blocks: Blocks) -> dict[str, str]:
    """The title of each block, by its name, which is added where several have the same."""
    titles = {name: settings.title or settings.load_task().title for name, settings in blocks.items()}
    times = Counter(titles.values())
    return {name: title if times[title] == 1 else f"{title} [{name}]" for name, title in titles.items()}


def evaluation_titles(blocks: Blocks) -> dict[str, str]:
    """The title of each evaluation, by its name."""
    found = {}
    for block, title in task_titles(blocks).items():
        task = blocks[block].load_task()
        for evaluation, which in zip(task.evaluations(block), task.envs, strict=True):
            found[evaluation] = f"{title} ({which})" if which else title
    return found


def entry_name(entry: Entry, titles: Mapping[str, str] = NO_TITLES) -> str:
    """How a list of rows names ``entry``, with the title of its evaluation."""
    return f"{titles.get(entry.evaluation, entry.evaluation)}, {METHOD_NAMES[entry.method]}, NFE {entry.nfe}"
