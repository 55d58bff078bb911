"""Pictures of the coupling study."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from pipeline.reporting.figures import STYLE, legend_below, save_figure
from pipeline.reporting.study import OWN_NFE, ROW_NAMES

# Okabe and Ito's palette; marker and dash tell the rows apart where colour does not
_LOOK: dict[str, tuple[str, str, str]] = {
    "fm": ("#000000", "o", ":"),
    "fm_continued": ("#000000", "o", "-"),
    "regression": ("#666666", "*", ""),
    "mip": ("#666666", "X", ""),
    "independent": ("#CC79A7", "v", "--"),
    "minibatch_ot": ("#E69F00", "^", "--"),
    "sinkhorn": ("#F0E442", "<", "--"),
    "conditional_ot": ("#009E73", ">", "-."),
    "nearest": ("#D55E00", "s", "-"),
    "inversion": ("#56B4E9", "P", "-."),
    "reflow": ("#0072B2", "D", "-"),
}


def score_panels(table: pd.DataFrame, path: Path) -> None:
    """Max score, success and spread of every row against NFE; ``path`` with the suffixes .png and .svg.

    Lines join the means over training seeds; small marks are the single training seeds.
    """
    measures = {"max_score": "Max score", "success": "Success rate", "spread_ratio": "Spread ratio"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        for panel, (name, label) in zip(figure.subplots(1, len(measures)), measures.items(), strict=True):
            shown = table[~table["coupling"].isin(OWN_NFE)] if name == "spread_ratio" else table
            for row in [row for row in ROW_NAMES if row in set(shown["coupling"])]:
                _draw_row(panel, shown[shown["coupling"] == row], name, row)
            _nfe_axis(panel, table)
            panel.set_ylabel(label)
            if name == "success":
                panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            if name == "spread_ratio":
                panel.axhline(1.0, color="#555555", linewidth=0.8)
        figure.suptitle(f"Couplings against NFE: {_about(table)}\nsmall marks are single training seeds", fontsize=10)
        legend_below(figure)
        save_figure(figure, path)


def _draw_row(panel: Axes, rows: pd.DataFrame, name: str, row: str) -> None:
    colour, marker, dash = _LOOK[row]
    means = rows.groupby("nfe")[name].mean()
    panel.plot(
        means.index, means, color=colour, marker=marker, markersize=6, linestyle=dash or "none", label=ROW_NAMES[row]
    )
    panel.plot(rows["nfe"], rows[name], color=colour, marker=marker, markersize=2.5, linestyle="none", alpha=0.6)


def difference_panels(table: pd.DataFrame, path: Path) -> None:
    """The paired difference to FM continued of every cell, with its interval, a panel for each NFE."""
    shown = table[table["diff_vs_fm"].notna() & (table["coupling"] != "fm")]
    rows = [row for row in ROW_NAMES if row in set(shown["coupling"])]
    numbers = sorted(shown["nfe"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.0 + 1.9 * len(numbers), 1.4 + 0.42 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(numbers), sharex=True, sharey=True, squeeze=False)[0]
        for panel, nfe in zip(panels, numbers, strict=True):
            panel.axvline(0.0, color="#555555", linewidth=0.8)
            for height, row in enumerate(rows):
                cells = shown[(shown["coupling"] == row) & (shown["nfe"] == nfe)].sort_values("train_seed")
                colour, marker, _ = _LOOK[row]
                y = height + 0.2 * (np.arange(len(cells)) - (len(cells) - 1) / 2)
                panel.hlines(y, cells["diff_low"], cells["diff_high"], color=colour, linewidth=1.4)
                panel.plot(cells["diff_vs_fm"], y, color=colour, marker=marker, markersize=4, linestyle="none")
            panel.set_title(f"NFE {nfe}")
            panel.set_xlabel("Difference")
        panels[0].set_yticks(range(len(rows)), [ROW_NAMES[row] for row in rows])
        panels[0].invert_yaxis()
        figure.suptitle(
            f"Max score against FM continued for equal compute\n{_about(table)}\n"
            "one mark for each training seed, bars are 95 % intervals",
            fontsize=10,
        )
        save_figure(figure, path)


def _nfe_axis(panel: Axes, table: pd.DataFrame) -> None:
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(sorted(table["nfe"].unique())))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.set_xlabel("NFE")


def _about(table: pd.DataFrame) -> str:
    first = table.iloc[0]
    seeds = ", ".join(str(seed) for seed in sorted(table["train_seed"].unique()))
    return (
        f"{first['evaluation']}, scale {first['scale']}, data set {first['dataset']}, training seeds {seeds}, "
        f"{table['n_seeds'].max()} test seeds"
    )
