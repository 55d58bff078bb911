"""Extract the headline of a report's table: a few metrics, FM against FT-FM, and the rows as a note."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

TITLES = {
    "table1": "Table 1, images",
    "table2": "Table 2",
    "one_step": "One-step study",
    "coupling_study": "Coupling study",
}
_OFFLINE = "offline-"
_NAMES = ("task", "evaluation", "coupling", "method", "solver", "nfe", "finetuned_nfe")
_SCORES = ("max_score", "success", "diff_vs_fm", "distance", "error", "error_diff_vs_fm")
_COMPARED = ("fm", "i_cfm", "ft_fm")
"""Methods with metrics: flow matching that was trained on, of robots and of images, and fine-tuned."""
_SECTION = re.compile(r"^(?=### )", re.MULTILINE)
_SECTION_LENGTH = 2400


@dataclass(frozen=True)
class Headline:
    """Headline of a table.

    Attributes:
        metrics: by name, such as ``pusht_b/nfe1 ft_fm max_score``.
        note: Markdown that begins with the table's title.
    """

    metrics: dict[str, float]
    note: str


def headline(name: str, table: "pd.DataFrame") -> Headline | None:
    """Return the headline of the table ``name``, averaged over training seeds; None if it is no report's table."""
    title = f"Offline, {name.removeprefix(_OFFLINE)}" if name.startswith(_OFFLINE) else TITLES.get(name)
    names = [column for column in _NAMES if column in table]
    scores = [column for column in _SCORES if column in table]
    if title is None or not names or not scores:
        return None
    rows = table.groupby(names, sort=False, dropna=False)[scores].mean().reset_index()
    compared = rows["method"].isin(_COMPARED) if "method" in rows else rows.index < 0
    metrics = {
        f"{_group(name, row)}/{_words(row, names)} {score}": float(row[score])
        for _, row in rows[compared].iterrows()
        for score in scores
        if row[score] == row[score]
    }
    order = [*rows.index[compared], *rows.index[~compared]]
    return Headline(metrics, _note(title, rows.loc[order], names, scores))


def merged(note: str, section: str, limit: int) -> str:
    """Replace the section of ``note`` that has the same title as ``section``; cut to ``limit`` characters."""
    title = section.partition("\n")[0]
    kept = [part for part in _SECTION.split(note) if part.strip() and part.partition("\n")[0] != title]
    whole = "\n\n".join(part.strip() for part in [*kept, section])
    return whole if len(whole) <= limit else whole[:limit].rpartition("\n")[0]


def _group(name: str, row: "pd.Series[Any]") -> str:
    """Return a row's section of MLflow's charts: the evaluation, with the table's name except for Table 2."""
    evaluation = row.get("evaluation", "")
    return f"{evaluation}" if name == "table2" else f"{name} {evaluation}".strip()


def _words(row: "pd.Series[Any]", names: list[str]) -> str:
    """Return a row's name within its evaluation, such as ``nfe1 ft_fm``; an adaptive solver has no fixed NFE."""
    adaptive = row.get("solver") == "dopri5"
    words = ["dopri5"] if adaptive else [f"nfe{row['nfe']:g}"] if "nfe" in names else []
    return " ".join([*words, str(row["method"])])


def _note(title: str, rows: "pd.DataFrame", names: list[str], scores: list[str]) -> str:
    columns = [*names, *scores]
    lines = [f"### {title}", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for shown, (_, row) in enumerate(rows.iterrows()):
        line = f"| {' | '.join(_cell(row[column]) for column in columns)} |"
        if sum(map(len, lines)) + len(lines) + len(line) > _SECTION_LENGTH:
            lines += ["", f"and {len(rows) - shown} more rows in the run of the table"]
            break
        lines.append(line)
    return "\n".join(lines)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if value != value else f"{value:.3g}"
