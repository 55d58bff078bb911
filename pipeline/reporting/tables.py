"""Table 2: one row per evaluation, method and NFE, as CSV and as Markdown.

Every score is computed from the episode files alone; the metrics beside them add what an episode cannot show (data set,
training steps, diversity). A row whose episodes are not there is named with the reason, and costs no other row.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from pipeline.evaluation.statistics import (
    Interval,
    best_of_repeats,
    mean_interval,
    paired_difference,
    proportion_interval,
)
from pipeline.reporting.episodes import read_episodes, read_metrics, temperature_of, trained_in
from pipeline.reporting.titles import Quoted
from pipeline.settings.paths import Entry
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError

TABLE_HEADER = (
    "evaluation,method,nfe,scale,dataset,train_steps,train_seeds,n_seeds,repeats,best,mean,"
    "max_score,max_score_low,max_score_high,success,success_low,success_high,"
    "diff_vs_fm,diff_low,diff_high,temperature,spread_ratio,paper_best,paper_mean,paper_comparable,precision"
)

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

PAPER_NFE = 16  # the paper's header says "Methods (16-step)": it has no number at another NFE
PAPER: Mapping[str, tuple[tuple[float, float], ...]] = {  # its Table 2: best and mean, a pair each column
    "ddpm": ((0.8840, 0.7178), (0.7360, 0.6100), (0.9840, 0.6716), (0.9359, 0.7168)),
    "ddim": ((0.8801, 0.6372), (0.7490, 0.6167), (0.9865, 0.7471), (0.9334, 0.7073)),
    "fm": ((0.9035, 0.7519), (0.7363, 0.6218), (0.9960, 0.7425), (0.9360, 0.7289)),
    "ft_fm": ((0.9197, 0.7885), (0.7567, 0.6496), (0.9967, 0.7822), (0.9401, 0.7552)),
    "resft_fm": ((0.9143, 0.7761), (0.7452, 0.6511), (0.9963, 0.7836), (0.9385, 0.7447)),
    "resft_fm_unet": ((0.9039, 0.7518), (0.7371, 0.6220), (0.9961, 0.7541), (0.9362, 0.7283)),
}

_HOW_TO_READ = """\
One row is one trained model, rolled out once per test seed and repeat. *Max score* is the highest score of an episode,
averaged over episodes; *success* is the share of episodes that reached full score; both with 95 % intervals over seeds.
*Against FM* is the difference in max score to the FM row of the same evaluation and NFE (of baselines, which have no
NFE: to that of the most) on the same seeds: with its interval above zero, the method is better than FM trained on for
equal compute. *Best / mean* is the paper's protocol:
the best of a seed's repeats, averaged over seeds (— with one repeat) / the max score averaged over all episodes.
*τ* is the temperature: the factor of the noise that solves start from. *Spread* is how diverse the action samples are,
relative to the base model at NFE 16 and temperature 1: near 0, the modes have collapsed.
[How to read the reports](../README.md) explains every column and the protocol."""


def task_table(
    reports: Path,
    expected: Sequence[Entry],
    asked: Mapping[Entry, str] = MappingProxyType({}),
    paper: Mapping[str, Quoted] = MappingProxyType({}),
) -> pd.DataFrame:
    """The rows of Table 2 for those of ``expected`` whose episodes lie under ``reports`` (one scale), in that order.

    Args:
        asked: the setting ``precision`` of their trainings, see ``trained_in``.
        paper: evaluations that the paper has numbers of.

    Raises:
        UserError: an episodes or metrics file is wrong, or a row has seeds that its FM row lacks.
    """
    present = {entry: read_episodes(reports, entry) for entry in expected if entry.episodes(reports).exists()}
    rows = []
    for entry, episodes in present.items():
        metrics = read_metrics(reports, entry, episodes)
        fm = present.get(reference(entry, present))
        if fm is not None and not episodes["seed"].isin(fm["seed"]).all():
            raise UserError(f"{entry.episodes(reports)}: has seeds that the fm row lacks; evaluate both on the same")
        rows.append(
            _row(entry, episodes, metrics, fm, paper.get(entry.evaluation))
            | {"precision": trained_in(metrics, asked.get(entry, ""))}
        )
    return pd.DataFrame(rows, columns=TABLE_HEADER.split(",")).round(6)


def reference(entry: Entry, present: Collection[Entry]) -> Entry:
    """The FM row that ``entry`` is compared with: that of its NFE; of baselines, which have none, that of the most."""
    numbers = [other.nfe for other in present if (other.evaluation, other.method) == (entry.evaluation, "fm")]
    return replace(entry, method="fm", nfe=entry.nfe or max(numbers, default=0))


def _row(
    entry: Entry,
    episodes: pd.DataFrame,
    metrics: Mapping[str, object],
    fm: pd.DataFrame | None,
    quoted: Quoted | None,
) -> dict[str, object]:
    scores = _by_seed(episodes, "max")
    max_score = mean_interval(scores)
    success = proportion_interval(_by_seed(episodes, "success"))
    difference = _difference(scores, fm) if entry.method != "fm" else None
    paper, scale = _paper_numbers(entry, quoted), episodes["scale"].iloc[0]
    repeats = scores.shape[1]
    return {
        "evaluation": entry.evaluation,
        "method": entry.method,
        "nfe": entry.nfe,
        "scale": scale,
        "dataset": metrics["dataset"],
        "train_steps": metrics["train_steps"],
        "train_seeds": str(episodes["train_seed"].iloc[0]),
        "n_seeds": len(scores),
        "repeats": repeats,
        "best": best_of_repeats(scores) if repeats > 1 else np.nan,
        "mean": episodes["max"].mean(),
        "max_score": max_score.mean,
        "max_score_low": max_score.low,
        "max_score_high": max_score.high,
        "success": success.mean,
        "success_low": success.low,
        "success_high": success.high,
        "diff_vs_fm": difference.mean if difference else np.nan,
        "diff_low": difference.low if difference else np.nan,
        "diff_high": difference.high if difference else np.nan,
        "temperature": temperature_of(metrics) if entry.nfe else np.nan,
        "spread_ratio": np.nan if metrics["spread_ratio"] is None else metrics["spread_ratio"],
        "paper_best": paper[0] if paper else np.nan,
        "paper_mean": paper[1] if paper else np.nan,
        "paper_comparable": quoted is not None
        and (paper is not None and scale == "paper" and metrics["dataset"] == quoted.dataset),
    }


def _by_seed(episodes: pd.DataFrame, column: str) -> pd.DataFrame:
    """``column`` as (S, R): a row per seed and a column per repeat, both ascending."""
    return episodes.pivot(index="seed", columns="repeat", values=column)


def _difference(scores: pd.DataFrame, fm: pd.DataFrame | None) -> Interval | None:
    if fm is None:
        return None
    # a costly method may have been run on the first of the seeds only, which are then the pairs
    reference = _by_seed(fm, "max").loc[scores.index]
    return paired_difference(scores, reference, scores.index.to_numpy(), reference.index.to_numpy())


def _paper_numbers(entry: Entry, quoted: Quoted | None) -> tuple[float, float] | None:
    if entry.nfe != PAPER_NFE or entry.method not in PAPER or quoted is None:
        return None
    return PAPER[entry.method][quoted.column]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write ``table`` as CSV: missing values are empty fields."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: Path) -> pd.DataFrame:
    """A table that ``write_table`` wrote.

    Raises:
        UserError: the file is unreadable or its columns are not those of Table 2.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    header = text.partition("\n")[0]
    if header != TABLE_HEADER:
        raise UserError(f"{path}: columns are {header}, expected {TABLE_HEADER}; run tabulate again")
    return pd.read_csv(StringIO(text), dtype={"train_seeds": str, "precision": str}).fillna({"precision": ""})


def missing_rows(reports: Path, expected: Sequence[Entry]) -> dict[Entry, str]:
    """Those of ``expected`` without episodes, each with the reason."""
    return {
        entry: f"`{entry.episodes(reports).relative_to(reports)}` was not made: its evaluation, or a stage before it, "
        "has not finished"
        for entry in expected
        if not entry.episodes(reports).exists()
    }


def markdown(
    table: pd.DataFrame, missing: Mapping[Entry, str], *, scale: str, titles: Mapping[str, str] = NO_TITLES
) -> str:
    """The Markdown twin of ``table``: titles of evaluations, how to read it, and what is missing and why."""
    parts = [f"# Table 2, scale `{scale}`", _HOW_TO_READ, _paper_note(table)]
    if len(table):
        cells = [_cells(row, titles) for _, row in table.iterrows()]
        lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(row.values()) for row in cells)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if missing:
        rows = [f"- {_name(e.evaluation, e.method, titles)}, NFE {e.nfe}: {reason}." for e, reason in missing.items()]
        parts.append("\n".join(["**Missing rows**", "", *rows]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _paper_note(table: pd.DataFrame) -> str:
    comparable = table["paper_comparable"].astype(bool)
    if comparable.all():
        return ""
    which = "No row here is" if not comparable.any() else "Rows marked with * are not"
    return (
        f"**{which} comparable with the paper.** Its numbers are quoted for orientation, with *: they come from other "
        "observations, data, net sizes or training lengths."
    )


def _name(evaluation: str, method: str, titles: Mapping[str, str]) -> str:
    return f"{titles.get(evaluation, evaluation)}, {METHOD_NAMES.get(method, method)}"


def _cells(row: pd.Series, titles: Mapping[str, str]) -> dict[str, str]:
    success = f"{row['success']:.1%} [{row['success_low']:.1%}, {row['success_high']:.1%}]"
    paper = f"{row['paper_best']:.4f} / {row['paper_mean']:.4f}" if pd.notna(row["paper_mean"]) else "—"
    return {
        "Evaluation": titles.get(row["evaluation"], row["evaluation"]),
        "Method": METHOD_NAMES.get(row["method"], row["method"]),
        "NFE": str(row["nfe"]),
        "Max score": with_interval(row, "max_score", "max_score_low", "max_score_high", ".3f"),
        "Success": success.replace("%", " %"),
        "Against FM": with_interval(row, "diff_vs_fm", "diff_low", "diff_high", "+.3f"),
        "Best / mean": f"{number(row['best'])} / {number(row['mean'])}",
        "τ": number(row["temperature"], "g"),
        "Spread": number(row["spread_ratio"]),
        "Scale": row["scale"],
        "Data set": row["dataset"],
        "Training steps": str(row["train_steps"]),
        "Precision": row["precision"] or "—",
        "Training seeds": row["train_seeds"],
        "Test seeds": str(row["n_seeds"]),
        "Repeats": str(row["repeats"]),
        "Paper, best / mean": paper if paper == "—" or row["paper_comparable"] else f"{paper} *",
    }


def number(value: float, style: str = ".3f") -> str:
    """A number of a Markdown cell; a dash where there is none."""
    return "—" if pd.isna(value) else f"{value:{style}}"


def with_interval(row: pd.Series, mean: str, low: str, high: str, style: str) -> str:
    if pd.isna(row[mean]):
        return "—"
    return f"{row[mean]:{style}} [{number(row[low], style)}, {number(row[high], style)}]"
