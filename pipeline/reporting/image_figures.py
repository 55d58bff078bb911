"""Pictures of the image half: Figure 2(a) and Figure E.2."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.evaluation.image_grid import Images, tile
from pipeline.reporting.figures import STYLE, legend_below, save_figure
from pipeline.reporting.table1 import DISTANCE_NAMES, IMAGE_METHODS, one_of, require_columns, span
from pipeline.utils.errors import UserError

IMAGE_HISTORY_HEADER = (
    "scale,dataset,method,nfe,train_seed,step,updates,distance,distance_low,distance_high,"
    "features,n_samples,sampling_seeds,selected"
)

# the looks of FM and FT-FM in Figure 2(b)
_LOOKS = {"i_cfm": ("#0072B2", "o", "--"), "ft_fm": ("#D55E00", "s", "-")}
_LABELS = {"i_cfm": "I-CFM", "ft_fm": "FT-FM"}
_PANELS_IN_A_ROW = 4


def figure_2a(history: pd.DataFrame, path: Path) -> None:
    """The paper's Figure 2(a): distance over training, and of fine-tuning branched off one checkpoint, by NFE.

    ``history`` (columns as in ``IMAGE_HISTORY_HEADER``) has method ``i_cfm`` at every NFE, one of its checkpoints
    ``selected``, and ``ft_fm`` at some. The axis is compute since the random start, in flow-matching updates, so that
    the branches compare at the same place. Writes ``path`` with the suffixes ``.png`` and ``.svg``.

    Raises:
        UserError: a column or all rows are missing, the scale, data set, features or training seed is not one, there is
            a branch without I-CFM at its NFE, or the checkpoint selected at an NFE is not one.
    """
    require_columns(history, IMAGE_HISTORY_HEADER, "history")
    scale, dataset, features, seed = (
        one_of(history, column, "history") for column in ("scale", "dataset", "features", "train_seed")
    )
    name, numbers = DISTANCE_NAMES[str(features)], sorted(history["nfe"].unique())
    columns = min(len(numbers), _PANELS_IN_A_ROW)
    rows = -(-len(numbers) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.0 + 3.1 * columns, 1.6 + 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for panel, nfe in zip(panels, numbers, strict=False):
            _draw_training(panel, history[history["nfe"] == nfe], nfe)
            panel.set_ylabel(f"{name} ({features} features)" if panel.get_subplotspec().is_first_col() else "")
        for spare in list(figure.axes)[len(numbers) :]:
            spare.remove()
        for panel in figure.axes[-columns:]:  # the lowest of each column
            panel.set_xlabel("Compute (flow-matching updates)")
            panel.tick_params(labelbottom=True)
        samples, seeds = (span(history[column]) for column in ("n_samples", "sampling_seeds"))
        figure.suptitle(
            f"{name} while training, and while fine-tuning a checkpoint of it\n"
            f"scale {scale}, data set {dataset}, training seed {seed}\n"
            f"{samples} images, {seeds} sampling seeds per point, bands are 95 % intervals",
            fontsize=10,
        )
        legend_below(figure)
        save_figure(figure, path)


def _draw_training(panel: Axes, history: pd.DataFrame, nfe: int) -> None:
    base = history[history["method"] == "i_cfm"].sort_values("updates")
    tuned = history[history["method"] == "ft_fm"].sort_values("updates")
    if base.empty:
        raise UserError(f"history: method i_cfm is missing at NFE {nfe}")
    start = base[base["selected"].astype(bool)]
    if len(start) != 1:
        raise UserError(f"history: i_cfm, NFE {nfe}: given {len(start)} selected checkpoints, allowed: 1")
    _curve(panel, base, "i_cfm")
    if not tuned.empty:
        # it starts as the checkpoint; where its own file measures that too, the file's is kept
        at_start = tuned["updates"].min() <= start["updates"].iloc[0]
        _curve(panel, tuned if at_start else pd.concat([start, tuned]), "ft_fm")
    panel.plot(
        start["updates"],
        start["distance"],
        "o",
        color="black",
        markerfacecolor="none",
        markersize=9,
        label="fine-tuned from here",
    )
    panel.set_title(f"NFE {nfe}" + (", not fine-tuned for" if tuned.empty else ""))
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def _curve(panel: Axes, rows: pd.DataFrame, method: str) -> None:
    colour, marker, dash = _LOOKS[method]
    x, name = rows["updates"], _LABELS[method]
    panel.plot(x, rows["distance"], color=colour, marker=marker, markersize=4, linestyle=dash, label=name)
    # a bound at 0 has no place on a logarithmic axis: the band then goes down to the smallest distance drawn
    low = rows["distance_low"].mask(rows["distance_low"] <= 0, rows["distance"].min())
    panel.fill_between(x, low, rows["distance_high"], color=colour, alpha=0.18, linewidth=0)


def figure_e2(rows: Mapping[str, Images], path: Path) -> None:
    """The paper's Figure E.2: a row of images for each model, from the same noise in every row.

    Args:
        rows: (K, C, H, W) by method or any other label, first to last from above. path: written with the suffixes
            ``.png`` and ``.svg``.

    Raises:
        ValueError: there are no rows, or their shapes differ.
    """
    if len({images.shape for images in rows.values()}) != 1:
        raise ValueError(f"rows of images must be of one shape, not {[images.shape for images in rows.values()]}")
    count = len(next(iter(rows.values())))
    with mpl.rc_context({**STYLE, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(2.1 + 0.6 * count, 0.7 + 0.65 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for panel, (name, images) in zip(panels, rows.items(), strict=True):
            panel.imshow(tile(images, count), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.set_ylabel(IMAGE_METHODS.get(name, name), rotation=0, ha="right", va="center")
        figure.suptitle("Images in a column are from the same noise", fontsize=10)
        save_figure(figure, path)
