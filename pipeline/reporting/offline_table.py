"""The table of an offline task: one row per method, NFE and perturbation, as CSV and as Markdown.

Every score is computed from the files of held-out episodes alone; the metrics beside them add what an episode cannot
show. A row whose episodes are not there is named with the reason, and costs no other row.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.evaluation.rollouts import UNPERTURBED
from pipeline.evaluation.statistics import Interval, mean_interval, paired_difference
from pipeline.reporting.episodes import temperature_of
from pipeline.reporting.offline_rows import OFFLINE_COLUMNS
from pipeline.reporting.tables import METHOD_NAMES, number, reference, with_interval
from pipeline.settings.paths import Entry, ScaleReports
from pipeline.utils.errors import UserError

COMPARED = ("error", "best_of_k", "mean_error", "nll", "crps")
"""Scores with an interval, and with their difference to FM's."""
ABOUT = ("scale", "dataset", "train_steps", "train_seeds", "n_episodes", "n_windows", "repeats")
OFFLINE_HEADER = (
    *("evaluation", "method", "nfe", "perturbation", *ABOUT),
    *(f"{name}{end}" for name in COMPARED for end in ("", "_low", "_high")),
    *(f"{name}{end}" for name in COMPARED for end in ("_diff_vs_fm", "_diff_low", "_diff_high")),
    *("temperature", "spread_ratio", "spread", "jump", "jump_recorded", "ms_per_plan", "precision"),
)

_HOW_TO_READ = """\
One row is one trained model, asked for {repeats} answers to each window of {episodes} held-out episodes by which
nothing was chosen: checkpoints and the early stop of fine-tuning have held-out episodes of their own. All numbers but
the last columns are in normalised units (the training data span −1 to 1), means over episodes, with 95 % bootstrap
intervals over episodes (none where there is a single one); *against FM* is the difference to the FM row of the same
NFE, perturbation and windows, on the same draws of noise; below zero, the method is better.

- *Error*: root mean square error of one answer; *best of K*: of each window's nearest answer; *RMSE*: of the mean of
  the answers. A model that answers with the mean has the least error and no diversity: read them with the spread and
  the CRPS, which rewards answers that are spread as the record is.
- *NLL*: negative log-likelihood of a component in nats, Gaussian with the variances that fit best; *CRPS*: continuous
  ranked probability score.
- *τ*: temperature, the factor of the noise that solves start from.
- *Spread*: standard deviation of the answers, and in brackets its ratio to the base model's at NFE 16 on validation
  episodes, below which diversity is being lost; *seam*: root mean square step from a plan's last executed action to the
  next plan's first, and in brackets the recorded one.
- *ms*: median time of a plan for one observation on the machine that evaluated the row."""


@dataclass(frozen=True)
class _Found:
    """The episodes of a row under one perturbation, and its metrics."""

    entry: Entry
    episodes: pd.DataFrame
    metrics: Mapping[str, object]

    @property
    def perturbation(self) -> str:
        return str(self.episodes["perturbation"].iloc[0])


def offline_table(reports: ScaleReports, expected: Sequence[Entry]) -> pd.DataFrame:
    """The rows for those of ``expected`` whose episodes lie under ``reports``, undisturbed ones first.

    Raises:
        UserError: a file is wrong, or a row has other episodes than its FM row.
    """
    found = [row for entry in expected for row in _read(reports, entry)]
    by_entry = {(row.entry, row.perturbation): row for row in found}
    ordered = sorted(found, key=lambda row: row.perturbation != UNPERTURBED)
    present = {row.entry for row in found}
    rows = [_row(row, by_entry.get((reference(row.entry, present), row.perturbation))) for row in ordered]
    return pd.DataFrame(rows, columns=list(OFFLINE_HEADER)).round(6)


def _read(reports: ScaleReports, entry: Entry) -> Iterator[_Found]:
    """Undisturbed episodes, and the disturbed ones of the same model, where there are any."""
    plain, disturbed = entry.episodes(reports.folder), reports.disturbed_episodes(entry)
    if not plain.exists():
        return
    episodes, path = _checked(plain, entry), entry.metrics(reports.folder)
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))[entry.evaluation]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable JSON file of {entry.evaluation} ({error})") from error
    yield _Found(entry, episodes, metrics)
    if disturbed.exists():
        others = _checked(disturbed, entry)
        if set(others["checkpoint"]) == set(episodes["checkpoint"]):  # else after a failed run
            for _, of_one in others.groupby("perturbation", sort=False):
                yield _Found(entry, of_one.reset_index(drop=True), metrics)


def _checked(path: Path, entry: Entry) -> pd.DataFrame:
    try:
        episodes = pd.read_csv(path)
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error
    if tuple(episodes.columns) != OFFLINE_COLUMNS or episodes.empty:
        raise UserError(f"{path}: holds no scores of held-out episodes; evaluate again to rewrite it")
    of = set(zip(episodes["evaluation"], episodes["method"], episodes["nfe"], strict=True))
    if of != {(entry.evaluation, entry.method, entry.nfe)}:
        raise UserError(f"{path}: holds episodes of another model; evaluate again to rewrite it")
    return episodes


def _row(row: _Found, fm: _Found | None) -> dict[str, object]:
    episodes, metrics = row.episodes, row.metrics
    values: dict[str, object] = {
        "evaluation": row.entry.evaluation,
        "method": row.entry.method,
        "nfe": row.entry.nfe,
        "perturbation": row.perturbation,
        "scale": episodes["scale"].iloc[0],
        "dataset": metrics["dataset"],
        "train_steps": metrics["train_steps"],
        "train_seeds": str(episodes["train_seed"].iloc[0]),
        "n_episodes": len(episodes),
        "n_windows": int(episodes["windows"].sum()),
        "repeats": int(episodes["repeats"].iloc[0]),
    }
    for name in COMPARED:
        values |= _interval(name, mean_interval(episodes[name]))
        if fm is not None and row.entry.method != "fm":
            values |= _interval(f"{name}_diff", _difference(row, fm, name), "_vs_fm")
    return values | {
        "temperature": temperature_of(metrics),
        "spread_ratio": math.nan if metrics["spread_ratio"] is None else metrics["spread_ratio"],
        **{name: episodes[name].mean() for name in ("spread", "jump", "jump_recorded")},
        "ms_per_plan": math.nan if metrics["ms_per_plan"] is None else metrics["ms_per_plan"],
        "precision": metrics["precision"],
    }


def _difference(row: _Found, fm: _Found, name: str) -> Interval:
    mine, its = row.episodes, fm.episodes
    try:
        return paired_difference(mine[name], its[name], mine["episode"].to_numpy(), its["episode"].to_numpy())
    except ValueError:
        raise UserError(f"{row.entry.stem}: has other episodes than {fm.entry.stem}; evaluate both again") from None


def _interval(name: str, interval: Interval, end: str = "") -> dict[str, object]:
    return {f"{name}{end}": interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def offline_markdown(table: pd.DataFrame, missing: Mapping[Entry, str], *, scale: str, title: str) -> str:
    """The Markdown twin of ``table``: how to read it, and what is missing and why."""
    parts = [f"# {title}, scale `{scale}`: held-out episodes"]
    if len(table):
        parts.append(_HOW_TO_READ.format(repeats=table["repeats"].max(), episodes=_span(table["n_episodes"])))
        cells = [_cells(row) for _, row in table.iterrows()]
        lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(row.values()) for row in cells)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if missing:
        rows = [f"- {METHOD_NAMES.get(e.method, e.method)}, NFE {e.nfe}: {reason}." for e, reason in missing.items()]
        parts.append("\n".join(["**Missing rows**", "", *rows]))
    return "\n\n".join(parts) + "\n"


def _span(values: pd.Series) -> str:
    return f"{values.min()}" if values.min() == values.max() else f"{values.min()} to {values.max()}"


def _cells(row: pd.Series) -> dict[str, str]:
    def scored(name: str) -> str:
        return with_interval(row, name, f"{name}_low", f"{name}_high", ".4f")

    def against(name: str) -> str:
        return with_interval(row, f"{name}_diff_vs_fm", f"{name}_diff_low", f"{name}_diff_high", "+.4f")

    return {
        "Method": METHOD_NAMES.get(row["method"], row["method"]),
        "NFE": str(row["nfe"]),
        "Perturbation": "—" if row["perturbation"] == UNPERTURBED else row["perturbation"],
        "Error": scored("error"),
        "Error against FM": against("error"),
        "Best of K": scored("best_of_k"),
        "RMSE": scored("mean_error"),
        "RMSE against FM": against("mean_error"),
        "NLL": scored("nll"),
        "CRPS": scored("crps"),
        "CRPS against FM": against("crps"),
        "τ": number(row["temperature"], "g"),
        "Spread": f"{number(row['spread'])} ({number(row['spread_ratio'], '.2f')})",
        "Seam": f"{number(row['jump'])} ({number(row['jump_recorded'])})",
        "ms": number(row["ms_per_plan"], ".2f"),
        "Scale": row["scale"],
        "Data set": row["dataset"],
        "Training steps": str(row["train_steps"]),
        "Precision": row["precision"] or "—",
        "Training seeds": row["train_seeds"],
        "Windows": str(row["n_windows"]),
        "K": str(row["repeats"]),
    }
