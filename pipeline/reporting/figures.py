"""Figures, each as PNG and SVG; the same numbers give the same bytes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from pipeline.reporting.tables import METHOD_NAMES, NO_TITLES, TABLE_HEADER
from pipeline.utils.atomic import replacing
from pipeline.utils.errors import UserError

HISTORY_HEADER = (
    "scale,task,dataset,method,nfe,train_seed,step,epoch,max_score,max_score_low,max_score_high,"
    "success,success_low,success_high,n_seeds,loss,spread_ratio,best_of_k,reconstruction_error"
)

STYLE: dict[Any, object] = {  # Any: matplotlib types its keys one by one
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.hashsalt": "flowtune",  # element ids would otherwise be random
}
"""Of every figure."""

# Okabe and Ito's palette, told apart with any colour vision; marker and dash say the same in grey
_METHODS: dict[str, tuple[str, str, str]] = {
    "fm": ("#0072B2", "o", "--"),
    "ft_fm": ("#D55E00", "s", "-"),
    "resft_fm": ("#009E73", "D", "-"),
    "resft_fm_unet": ("#CC79A7", "^", "-."),
    "ddpm": ("#E69F00", "v", ":"),
    "ddim": ("#56B4E9", "P", ":"),
}
_BASELINES: dict[str, tuple[str, Any]] = {
    "random": ("#999999", (0, (1, 1))),
    "nearest_demo": ("#555555", (0, (5, 2))),
    "persistence": ("#111111", (0, (3, 1, 1, 1))),
}
"""What has no NFE: a level across the panel, in this colour and dash."""

_SCORES = {"max_score": "Max score", "success": "Success rate"}
_ERRORS = {"reconstruction_error": "Error", "best_of_k": "Error of the best of 16"}
"""What a history is drawn by, and the axes' names: of tasks with a simulation, and of offline ones."""

_COLUMNS = 5
"""Evaluations side by side; more go below."""


def figure_2b(history: pd.DataFrame, path: Path, titles: Mapping[str, str] = NO_TITLES) -> None:
    """Score, success and diversity while fine-tuning, next to plain FM training from the same checkpoint; of an offline
    task, errors on held-out episodes in place of score and success.

    ``history`` (columns as in ``HISTORY_HEADER``, one task and one training seed) holds the branches ``ft_fm`` and
    ``fm``, both from epoch 0 on. Writes ``path`` with the suffixes ``.png`` and ``.svg``.

    An FM epoch is cheaper than one of fine-tuning. Where the branches differ in epochs, the FM branch is drawn
    compressed, so that the same place on the axis means the same compute.

    Raises:
        UserError: a column or a branch is missing, or there are several tasks or training seeds.
    """
    _require(history, HISTORY_HEADER, "history")
    for column in ("scale", "task", "dataset", "train_seed"):
        if history[column].nunique() != 1:
            raise UserError(f"history: one {column} makes a figure, not {history[column].nunique()}")
    numbers = sorted(history["nfe"].unique())
    simulated = bool((history["n_seeds"] > 0).any())
    shown = _SCORES if simulated else _ERRORS
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 3.6 * len(numbers), 7.4), layout="constrained")
        panels = figure.subplots(3, len(numbers), sharex="col", sharey="row", squeeze=False)
        for column, nfe in zip(panels.T, numbers, strict=True):
            _draw_branches(column, history[history["nfe"] == nfe], nfe, tuple(shown))
        for panel, label in zip(panels[:, 0], (*shown.values(), "Spread ratio"), strict=True):
            panel.set_ylabel(label)
        if simulated:
            panels[1, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        first = history.iloc[0]
        points = "Held-out episodes that are not reported on"
        if simulated:
            points = f"{_range(history['n_seeds'])} validation seeds per point, bands are 95 % intervals"
        figure.suptitle(
            f"{titles.get(first['task'], first['task'])}: fine-tuning and FM continued, from one checkpoint\n"
            f"scale {first['scale']}, data set {first['dataset']}, training seed {first['train_seed']}\n"
            f"{points}",
            fontsize=10,
        )
        legend_below(figure)
        save_figure(figure, path)


def _draw_branches(column: Sequence[Axes], history: pd.DataFrame, nfe: int, names: Sequence[str]) -> None:
    *above, spread = column
    branches = {method: rows.sort_values("epoch") for method, rows in history.groupby("method")}
    for method in ("fm", "ft_fm"):
        if method not in branches:
            raise UserError(f"history: method {method} is missing at NFE {nfe}")
    span = branches["ft_fm"]["epoch"].max()
    stretch = branches["fm"]["epoch"].max() / span if span > 0 else 1.0
    for method in ("fm", "ft_fm"):
        rows = branches[method]
        epochs = rows["epoch"] / (stretch if method == "fm" else 1.0)
        for panel, name in zip(above, names, strict=True):
            _line(panel, epochs, rows[name], method)
            if f"{name}_low" in rows:
                low, high = rows[f"{name}_low"], rows[f"{name}_high"]
                panel.fill_between(epochs, low, high, color=_METHODS[method][0], alpha=0.18, linewidth=0)
        _line(spread, epochs, rows["spread_ratio"], method)
    spread.axhline(1.0, color="#555555", linewidth=0.8)
    above[0].set_title(f"NFE {nfe}")
    spread.set_ylim(bottom=0.0)
    spread.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=bool(span >= 1)))
    equal_compute = f"\n(each as much compute as {stretch:.3g} of FM continued)"
    spread.set_xlabel("Fine-tuning epoch" + (equal_compute if abs(stretch - 1) > 0.01 else ""))


def _line(panel: Axes, x: pd.Series, y: pd.Series, method: str) -> None:
    colour, marker, dash = _METHODS[method]
    panel.plot(x, y, color=colour, marker=marker, markersize=4, linestyle=dash, label=METHOD_NAMES[method])


def score_vs_nfe(table: pd.DataFrame, path: Path, titles: Mapping[str, str] = NO_TITLES) -> None:
    """Max score and, below it, success of each method against NFE, one column per evaluation.

    ``table`` holds rows of Table 2. Writes ``path`` with the suffixes ``.png`` and ``.svg``.

    Raises:
        UserError: there are no rows, or a column is missing.
    """
    names = ("max_score", "success")
    _require(table, TABLE_HEADER, "table2")
    evaluations = list(dict.fromkeys(table["evaluation"]))
    numbers = sorted(set(table["nfe"]) - {0})
    with mpl.rc_context(STYLE):
        bands, columns = math.ceil(len(evaluations) / _COLUMNS), min(len(evaluations), _COLUMNS)
        figure = Figure(figsize=(1.2 + 3.6 * columns, 0.6 + 5.0 * bands), layout="constrained")
        panels = figure.subplots(2 * bands, columns, sharex=True, sharey="row", squeeze=False)
        pairs = [(panels[2 * band, i], panels[2 * band + 1, i]) for band in range(bands) for i in range(columns)]
        for pair, evaluation in zip(pairs, evaluations, strict=False):
            for panel, name in zip(pair, names, strict=True):
                draw_methods(panel, table[table["evaluation"] == evaluation], name)
            pair[0].set_title(titles.get(evaluation, evaluation))
            pair[1].set_xlabel("NFE (function evaluations per action chunk)")
            pair[1].tick_params(labelbottom=True)
        for panel in panels.flat:
            nfe_axis(panel, numbers)
        for score, success in pairs[::columns]:
            score.set_ylabel("Max score")
            success.set_ylabel("Success rate")
            success.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        for score, success in pairs[len(evaluations) :]:
            score.remove()
            success.remove()
        figure.suptitle(
            "Score and success against NFE\n"
            f"scale {_list(table['scale'])}, data set {_list(table['dataset'])}, "
            f"training seed {_list(table['train_seeds'])}\n"
            f"{_range(table['n_seeds'])} test seeds, bars are 95 % intervals",
            fontsize=10,
        )
        legend_below(figure)
        save_figure(figure, path)


def nfe_axis(panel: Axes, numbers: Sequence[int]) -> None:
    """Let the horizontal axis of ``panel`` be logarithmic, with a tick at each of ``numbers``."""
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(numbers))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter("{x:.0f}")


def draw_methods(panel: Axes, rows: pd.DataFrame, name: str) -> None:
    """Draw ``name`` of each method against NFE, with its interval ``name_low``, ``name_high``; baselines as levels."""
    methods = [method for method in _METHODS if method in set(rows["method"])]
    # methods share their NFE: set slightly apart, their bars do not cover each other
    shifts = 2 ** (0.08 * (np.arange(len(methods)) - (len(methods) - 1) / 2))
    for method, shift in zip(methods, shifts, strict=True):
        of_method = rows[rows["method"] == method].sort_values("nfe")
        x = of_method["nfe"] * shift
        _line(panel, x, of_method[name], method)
        panel.vlines(x, of_method[f"{name}_low"], of_method[f"{name}_high"], color=_METHODS[method][0], linewidth=1.6)
    for method, (colour, dash) in _BASELINES.items():
        for level in rows.loc[rows["method"] == method, name]:
            panel.axhline(level, color=colour, linestyle=dash, linewidth=1.2, label=METHOD_NAMES[method], zorder=1)


def _require(frame: pd.DataFrame, header: str, what: str) -> None:
    absent = [name for name in header.split(",") if name not in frame.columns]
    if absent:
        raise UserError(f"{what}: column {absent[0]} is missing")
    if frame.empty:
        raise UserError(f"{what}: has no rows, so there is nothing to draw")


def legend_below(figure: Figure) -> None:
    """One legend below all panels of ``figure``, an entry for each label."""
    entries: dict[str, Artist] = {}
    for panel in figure.axes:
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    columns = int(figure.get_figwidth() / 2.2)  # the longest name takes 2.2 inches
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=min(len(entries), columns))


def _list(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(values.astype(str)))


def _range(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def write_note(text: str, path: Path) -> None:
    """Draw a ``text`` in place of a figure that there is nothing to draw in."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.0, 1.2))
        figure.text(0.5, 0.5, text, ha="center", va="center")
        save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``path`` with the suffixes ``.png`` and ``.svg``, atomically."""
    with replacing(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, dpi=150)
    with replacing(path.with_suffix(".svg")) as temporary:
        figure.savefig(temporary, metadata={"Date": None})
