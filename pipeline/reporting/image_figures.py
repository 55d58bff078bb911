"""Pictures of the image half: Figure 2(a), Figure E.2 and grids of samples."""

from collections.abc import Mapping
from pathlib import Path

import imageio.v3 as iio
import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.evaluation.image_models import ImageModel
from pipeline.reporting.figures import STYLE, legend_below, save_figure
from pipeline.reporting.table1 import DISTANCE_NAMES, IMAGE_METHODS, one_of, require_columns, span
from pipeline.tasks.images import as_bytes
from pipeline.utils.atomic import replacing
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import Generators

IMAGE_HISTORY_HEADER = (
    "scale,dataset,method,nfe,train_seed,step,updates,distance,distance_low,distance_high,"
    "features,n_samples,sampling_seeds,selected"
)

Images = NDArray[np.uint8]
"""(N, C, H, W), C 1 or 3."""

# the looks of FM and FT-FM in Figure 2(b)
_LOOKS = {"i_cfm": ("#0072B2", "o", "--"), "ft_fm": ("#D55E00", "s", "-")}
_LABELS = {"i_cfm": "I-CFM", "ft_fm": "FT-FM"}
_PANELS_IN_A_ROW = 4
_GAP = 2  # white pixels between images
_SHOWN = 64
_LEGIBLE = 64  # pixels: smaller images are enlarged to about this side


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


def image_grid(images: Images, columns: int, path: Path) -> None:
    """Write ``images`` (N, C, H, W) as one PNG of ``columns`` images a row; small ones are enlarged by a whole factor.

    Raises:
        ValueError: as of ``tile``.
    """
    with replacing(path) as temporary:
        iio.imwrite(temporary, tile(images, columns), extension=".png")


@torch.no_grad()
def sample_grid(model: ImageModel, solver: str, shape: tuple[int, int, int], seed: int, path: Path) -> None:
    """Write 64 samples of ``model`` as one PNG, always from the same noise, to be looked at as training goes.

    Args:
        shape: (C, H, W) of an image. seed: of the noise.
    """
    noise = torch.randn(_SHOWN, *shape, generator=Generators(seed)["shown noise"])
    shown, _ = model.sample(noise, solver, torch.Generator().manual_seed(seed))
    image_grid(as_bytes(shown).cpu().numpy(), round(_SHOWN**0.5), path)


def tile(images: Images, columns: int) -> NDArray[np.uint8]:
    """``images`` (N, C, H, W) side by side on white, row by row: (height, width), with 3 channels if they have.

    Every pixel becomes a square of equal pixels, so that images of 8 × 8 can be looked at and none is resampled.

    Raises:
        ValueError: they are not uint8, not (N, 1 or 3, H, W), there are none, or ``columns`` is below 1.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0 or columns < 1:
        raise ValueError(
            f"a grid needs uint8 images (N, 1 or 3, H, W) and at least one column, not {images.dtype} {images.shape} "
            f"and {columns}"
        )
    factor = max(1, _LEGIBLE // max(images.shape[2:]))
    large = images.transpose(0, 2, 3, 1).repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = large.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), 255, dtype=np.uint8)
    for number, image in enumerate(large):
        top, left = (number // columns) * (height + _GAP), (number % columns) * (width + _GAP)
        canvas[top : top + height, left : left + width] = image
    return canvas[..., 0] if channels == 1 else canvas
