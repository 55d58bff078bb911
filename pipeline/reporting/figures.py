"""Draw and save figures, each as PNG and SVG; the same numbers give the same bytes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from pipeline.reporting.tables import METHOD_NAMES
from pipeline.utils.atomic import replacing

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
"""Methods without NFE: a level across the panel, in this colour and dash."""


@contextmanager
def drawing(
    path: Path, width: float, height: float, title: str = "", *, legend: bool = True, **style: object
) -> Iterator[Figure]:
    """A figure to draw in, ``width`` by ``height`` inches, which is then saved as ``path``, ``.png`` and ``.svg``.

    Args:
        legend: whether one goes below all panels. style: further settings of matplotlib, ``_`` for ``.``.
    """
    with mpl.rc_context(STYLE | {name.replace("_", "."): value for name, value in style.items()}):
        figure = Figure(figsize=(width, height), layout="constrained")
        if title:
            figure.suptitle(title, fontsize=10)
        yield figure
        if legend:
            legend_below(figure)
        save_figure(figure, path)


def line(panel: Axes, x: pd.Series, y: pd.Series, method: str, label: str = "") -> None:
    """Draw a line in the looks of a ``method`` of Table 2."""
    colour, marker, dash = _METHODS[method]
    panel.plot(x, y, color=colour, marker=marker, markersize=4, linestyle=dash, label=label or METHOD_NAMES[method])


def band(panel: Axes, x: pd.Series, low: pd.Series, high: pd.Series, method: str) -> None:
    """Fill the interval around a ``line``."""
    panel.fill_between(x, low, high, color=_METHODS[method][0], alpha=0.18, linewidth=0)


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
        line(panel, x, of_method[name], method)
        panel.vlines(x, of_method[f"{name}_low"], of_method[f"{name}_high"], color=_METHODS[method][0], linewidth=1.6)
    for method, (colour, dash) in _BASELINES.items():
        for level in rows.loc[rows["method"] == method, name]:
            panel.axhline(level, color=colour, linestyle=dash, linewidth=1.2, label=METHOD_NAMES[method], zorder=1)


def in_percent(axis: Axis) -> None:
    """Let an axis of shares be in percent."""
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def legend_below(figure: Figure) -> None:
    """One legend below all panels of ``figure``, an entry for each label."""
    entries: dict[str, Artist] = {}
    for panel in figure.axes:
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    columns = int(figure.get_figwidth() / 2.2)  # the longest name takes 2.2 inches
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=min(len(entries), columns))


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
