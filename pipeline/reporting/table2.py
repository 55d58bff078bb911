"""Tabulate Table 2: one row per evaluation, method and NFE, as CSV and as Markdown.

Every score is computed from the episode files alone; the metrics beside them add what an episode cannot show (data set,
training steps, diversity). A row whose episodes are not there is named with the reason, and costs no other row.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd

from pipeline.evaluation.statistics import best_of_repeats, shown
from pipeline.reporting import tables
from pipeline.reporting.episodes import (
    by_seed,
    read_episodes,
    read_metrics,
    reference,
    score_difference,
    summary,
    temperature_of,
)
from pipeline.settings.paths import Entry, listed_models
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.errors import UserError

TABLE2_HEADER = (
    "evaluation,method,nfe,scale,dataset,train_steps,train_seeds,n_seeds,repeats,best,mean,"
    "max_score,max_score_low,max_score_high,success,success_low,success_high,"
    "diff_vs_fm,diff_low,diff_high,temperature,spread_ratio,paper_best,paper_mean,paper_comparable,precision"
)

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


class Quoted(NamedTuple):
    """The place of the paper's numbers of an evaluation."""

    column: int  # of its Table 2, the number of a pair of columns
    dataset: str  # that it learned from


def report(asked: tables.Request) -> None:
    """Write the table of one scale."""
    settings, reports, blocks = asked.settings, asked.reports, asked.settings.chosen()
    rows = [
        Entry(evaluation, method, nfe, within=task)
        for task, block in blocks.items()
        for evaluation in block.load_task().evaluations(task)
        for method, nfe in listed_models(settings)
    ]
    precisions = {row: settings.task(row.within).precision_of(row.method, row.nfe) for row in rows}
    text = reports.table2.with_suffix(".md")
    with asked.begin(deps=[reports.folder / "episodes", reports.folder / "metrics"], outs=[reports.table2, text]):
        table, missing = (
            task_table(reports.folder, rows, precisions, quoted(blocks)),
            tables.missing_rows(reports.folder, rows),
        )
        write_csv(reports.table2, table)
        write_text(text, table2_markdown(table, missing, scale=reports.scale, titles=tables.evaluation_titles(blocks)))


def quoted(blocks: tables.Blocks) -> dict[str, Quoted]:
    """Find the place of the paper's numbers of each evaluation that it has, by the evaluation's name."""
    found = {}
    for block, settings in blocks.items():
        task = settings.load_task()
        for evaluation, which in zip(task.evaluations(block), task.envs, strict=True):
            if task.paper and which in task.paper.columns:
                found[evaluation] = Quoted(task.paper.columns[which], task.paper.dataset)
    return found


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
        of_fm, place = fm if entry.method != "fm" else None, paper.get(entry.evaluation)
        row = summary(entry, episodes, metrics, asked.get(entry, ""))
        rows.append(row | _own(entry, episodes, metrics, of_fm, place))
    return pd.DataFrame(rows, columns=TABLE2_HEADER.split(",")).round(6)


def _own(
    entry: Entry,
    episodes: pd.DataFrame,
    metrics: Mapping[str, object],
    fm: pd.DataFrame | None,
    place: Quoted | None,
) -> dict[str, object]:
    """The columns of a row beside its ``summary``; ``fm``: the episodes that it is compared with."""
    scores = by_seed(episodes, "max")
    best = mean = math.nan
    if place and entry.nfe == PAPER_NFE and entry.method in PAPER:
        best, mean = PAPER[entry.method][place.column]
    alike = place is not None and (episodes["scale"].iloc[0], metrics["dataset"]) == ("paper", place.dataset)
    return {
        "best": best_of_repeats(scores) if scores.shape[1] > 1 else math.nan,
        "mean": episodes["max"].mean(),
        # a costly method may have been run on the first of FM's seeds only, which are then the pairs
        **tables.interval_columns(score_difference(episodes, fm), "diff_vs_fm", "diff"),
        "temperature": temperature_of(metrics) if entry.nfe else math.nan,
        "paper_best": best,
        "paper_mean": mean,
        "paper_comparable": alike and not math.isnan(best),
    }


def table2_markdown(
    table: pd.DataFrame, missing: Mapping[Entry, str], *, scale: str, titles: Mapping[str, str] = tables.NO_TITLES
) -> str:
    """The Markdown twin of ``table``: titles of evaluations, how to read it, and what is missing and why."""
    return tables.document(
        f"# Table 2, scale `{scale}`",
        _HOW_TO_READ,
        _paper_note(table),
        tables.markdown_table(_cells(row, titles) for _, row in table.iterrows()),
        tables.missing_list(f"{tables.entry_name(entry, titles)}: {reason}" for entry, reason in missing.items()),
    )


def _paper_note(table: pd.DataFrame) -> str:
    comparable = table["paper_comparable"].astype(bool)
    if comparable.all():
        return ""
    which = "No row here is" if not comparable.any() else "Rows marked with * are not"
    return (
        f"**{which} comparable with the paper.** Its numbers are quoted for orientation, with *: they come from other "
        "observations, data, net sizes or training lengths."
    )


def _cells(row: pd.Series, titles: Mapping[str, str]) -> dict[str, str]:
    star = "" if row["paper_comparable"] else " *"
    paper = f"{row['paper_best']:.4f} / {row['paper_mean']:.4f}{star}" if pd.notna(row["paper_mean"]) else "—"
    return {
        "Evaluation": titles.get(row["evaluation"], row["evaluation"]),
        "Method": tables.METHOD_NAMES[row["method"]],
        "NFE": str(row["nfe"]),
        "Max score": tables.interval_cell(row, "max_score"),
        "Success": tables.interval_cell(row, "success", ".1%"),
        "Against FM": tables.interval_cell(row, "diff_vs_fm", "+.3f", "diff"),
        "Best / mean": f"{shown(row['best'])} / {shown(row['mean'])}",
        "τ": shown(row["temperature"], "g"),
        "Spread": shown(row["spread_ratio"]),
        **tables.training_cells(row),
        "Training seeds": row["train_seeds"],
        "Test seeds": str(row["n_seeds"]),
        "Repeats": str(row["repeats"]),
        "Paper, best / mean": paper,
    }
