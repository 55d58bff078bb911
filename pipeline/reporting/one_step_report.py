"""The one-step study to read: its report in Markdown, and its pictures."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.evaluation.aggregate import performance_profile
from pipeline.reporting.figures import STYLE, legend_below, save_figure
from pipeline.reporting.one_step import MEASURES, Cell, runs_of
from pipeline.reporting.tables import number, with_interval
from pipeline.settings.one_step import METHODS

_HOW_TO_READ = """\
One row is one trained model at one number of function evaluations (NFE), rolled out once per test seed. All methods
have the same net, data and compute, counted in passes of the net: those that go on from the base model have its
training and the study's budget, the others start from random weights and have both. Of each method the best of its
checkpoints, and of the temperatures tried, was taken on validation seeds by the mean of score and success; test seeds
chose nothing.
*τ* is that temperature, the factor of the noise that solves start from; *spread* is that of the samples over the base
model's at NFE 16 and temperature 1; *ms* is the median time of a plan for one observation, all methods one after
another on the machine that `one_step/<task>/times.json` names.

- *FM base* is the flow-matching model, *FM continued* the same trained on, *FT-FM* fine-tuned by maximum likelihood for
  its NFE. *Regression* is behaviour cloning. *MIP* (arXiv 2512.01809) guesses and mends. *IMLE* (IMLE Policy, arXiv
  2502.12371) pulls the nearest of 20 samples. *Drifting* (arXiv 2602.04770, 2604.03540) moves samples along a drift.
  *Flow map (LSD)* (arXiv 2505.18825) learns steps of any length. Where each departs from its authors' code is said in
  `pipeline/training/one_step_baselines.py` and `flow_map.py`."""
_LOOK = {  # Okabe and Ito's palette; marker tells the methods apart where colour does not
    "fm": ("#999999", "o"),
    "fm_continued": ("#000000", "o"),
    "ft_fm": ("#D55E00", "s"),
    "regression": ("#F0E442", "*"),
    "mip": ("#009E73", "X"),
    "imle": ("#56B4E9", "v"),
    "drifting": ("#CC79A7", "^"),
    "lsd": ("#0072B2", "D"),
}


def one_step_markdown(
    table: pd.DataFrame, answered: pd.DataFrame, aggregated: pd.DataFrame, pictures: list[str]
) -> str:
    """The report: aggregates, answers, and every cell."""
    tasks = list(dict.fromkeys(table["task"]))
    parts = [
        "# The one-step study",
        _HOW_TO_READ,
        *(f"![{name}]({name})" for name in pictures),
        f"## Over {len(tasks)} {'task' if len(tasks) == 1 else 'tasks'}",
        "*IQM* is the interquartile mean over tasks. The last column is the probability that a run of FT-FM scores "
        "higher than one of this method on a random task, ties counting half. 95 % intervals are of a bootstrap over "
        "training seeds and test seeds.",
        _markdown(_aggregate_cells(aggregated)),
        "## Answers",
        "Differences are paired on test seeds. *all* averages training seeds for each test seed first.",
        _markdown(_answer_cells(answered)),
        "## Every cell",
        _markdown(_table_cells(table)),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(cells: Iterable[dict[str, str]]) -> str:
    rows = list(cells)
    if not rows:
        return "None yet."
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _aggregate_cells(table: pd.DataFrame) -> Iterable[dict[str, str]]:
    for _, row in table.iterrows():
        versus = "—" if pd.isna(row["ft_fm_nfe"]) else f" (FT-FM at NFE {row['ft_fm_nfe']:.0f})"
        better = with_interval(row, "improvement_of_ft_fm", "improvement_low", "improvement_high", ".2f")
        yield {
            "Method": METHODS[row["method"]].title,
            "NFE": str(row["nfe"]),
            "Measure": row["measure"].replace("_", " "),
            "Tasks": str(row["tasks"]),
            "IQM": with_interval(row, "iqm", "iqm_low", "iqm_high", ".3f"),
            "FT-FM improves on it": better if better == "—" else better + versus,
        }


def _answer_cells(table: pd.DataFrame) -> Iterable[dict[str, str]]:
    for _, row in table.iterrows():
        yield {
            "Question": row["question"],
            "Task": row["task"],
            "Training seed": row["train_seed"],
            "Test seeds": str(row["n_seeds"]),
            "Difference": with_interval(row, "difference", "low", "high", "+.3f"),
            "So": "yes" if row["met"] else "**no**",
        }


def _table_cells(table: pd.DataFrame) -> Iterable[dict[str, str]]:
    for _, row in table.iterrows():
        yield {
            "Task": row["task"],
            "Evaluation": row["evaluation"],
            "Method": METHODS[row["method"]].title,
            "NFE": str(row["nfe"]),
            "τ": number(row["temperature"], "g"),
            "Training seed": str(row["train_seed"]),
            "Max score": number(row["max_score"]),
            "Success": f"{row['success']:.1%}".replace("%", " %"),
            "Spread": number(row["spread_ratio"], ".2f"),
            "ms": number(row["ms_per_plan"], ".2f"),
            "Passes, millions": number(row["train_passes"] / 1e6, ".1f"),
            "Test seeds": str(row["n_seeds"]),
            "Scale": row["scale"],
            "Data set": row["dataset"],
            "Training steps": str(row["train_steps"]),
            "Precision": row["precision"] or "—",
        }


def draw_against_time(table: pd.DataFrame, path: Path) -> None:
    """Score and success against milliseconds a plan, means over tasks and training seeds; ``path`` as .png and .svg."""
    means = table.groupby(["method", "nfe"])[[*MEASURES, "ms_per_plan"]].mean().reset_index()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        for panel, measure in zip(figure.subplots(1, len(MEASURES)), MEASURES, strict=True):
            for method in [method for method in METHODS if method in set(means["method"])]:
                rows = means[means["method"] == method].sort_values("nfe")
                colour, marker = _LOOK[method]
                panel.plot(rows["ms_per_plan"], rows[measure], color=colour, marker=marker, label=METHODS[method].title)
                for _, row in rows.iterrows():
                    panel.annotate(
                        f"{row['nfe']:.0f}",
                        (row["ms_per_plan"], row[measure]),
                        textcoords="offset points",
                        xytext=(4, 4),
                        fontsize=7,
                        color=colour,
                    )
            panel.set_xscale("log")
            panel.set_xlabel("Milliseconds a plan")
            panel.set_ylabel(measure.replace("_", " ").capitalize())
        figure.suptitle(_about(table), fontsize=10)
        legend_below(figure)
        save_figure(figure, path)


def draw_aggregates(aggregated: pd.DataFrame, table: pd.DataFrame, path: Path) -> None:
    """The interquartile mean of every method and NFE with its interval, by measure; ``path`` as .png and .svg."""
    names = list(dict.fromkeys(zip(aggregated["method"], aggregated["nfe"], strict=True)))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.2 + 0.28 * len(names)), layout="constrained")
        for panel, measure in zip(figure.subplots(1, len(MEASURES), sharey=True), MEASURES, strict=True):
            rows = aggregated[aggregated["measure"] == measure]
            heights = np.arange(len(rows))
            colours = [_LOOK[method][0] for method in rows["method"]]
            panel.hlines(heights, rows["iqm_low"], rows["iqm_high"], color=colours, linewidth=1.6)
            panel.scatter(rows["iqm"], heights, color=colours, s=18, zorder=2)
            panel.set_yticks(heights, [f"{METHODS[method].title}, NFE {nfe}" for method, nfe in names])
            panel.set_xlabel(f"{measure.replace('_', ' ').capitalize()}, interquartile mean over tasks")
        figure.axes[0].invert_yaxis()
        figure.suptitle(_about(table) + "; bars are 95 % intervals", fontsize=10)
        save_figure(figure, path)


def draw_profiles(cells: Sequence[Cell], table: pd.DataFrame, path: Path) -> None:
    """The performance profile of each method at its fewest evaluations, with bands; ``path`` as .png and .svg."""
    thresholds = np.linspace(0, 1, 101)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        panel = figure.subplots()
        for method in [method for method in METHODS if method in set(table["method"])]:
            nfe = int(table.loc[table["method"] == method, "nfe"].min())
            share, low, high = performance_profile(runs_of(cells, method, nfe, "max_score"), thresholds)
            colour, _ = _LOOK[method]
            panel.plot(thresholds, share, color=colour, label=f"{METHODS[method].title}, NFE {nfe}")
            panel.fill_between(thresholds, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_xlabel("Max score, at least")
        panel.set_ylabel("Share of episodes, mean over tasks")
        figure.suptitle(_about(table) + "; bands are 95 % intervals", fontsize=10)
        legend_below(figure)
        save_figure(figure, path)


def _about(table: pd.DataFrame) -> str:
    tasks, seeds = table["task"].nunique(), table.groupby(["task", "method"])["train_seed"].nunique()
    span = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    return f"{tasks} {'task' if tasks == 1 else 'tasks'}, training seeds of a method: {span}"
