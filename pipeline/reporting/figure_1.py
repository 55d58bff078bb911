"""Figure 1, drawn from trained models: a steep field, paths without a target, disturbances, contraction regions."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure

from pipeline.evaluation.figure_1 import Figure1
from pipeline.evaluation.toy_flows import Steepness
from pipeline.evaluation.toy_systems import Settled
from pipeline.reporting.figures import STYLE, save_figure
from pipeline.stability.system import Array

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
_PALE = ListedColormap(["#f2f2f2", "#dcebf5", "#fbe6d6"])
"""Ends nowhere, at the first, at the second equilibrium."""

_THIN = 0.8
_REGION_LINES = ("-", "--", ":")


def figure_1(shown: Figure1, path: Path) -> None:
    """Draw all four panels; writes ``path`` with the suffixes ``.png`` and ``.svg``."""
    with mpl.rc_context({**STYLE, "axes.grid": False, "axes.titlesize": 9}):
        figure = Figure(figsize=(13, 8), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=[1.15, 1], hspace=0.05, wspace=0.03)
        _draw_steepness(figure.add_subfigure(grid[0, 0]), shown.steepness)
        _draw_detours(figure.add_subfigure(grid[0, 1]), shown)
        _draw_disturbed(figure.add_subfigure(grid[1, 0]), shown)
        _draw_settled(figure.add_subfigure(grid[1, 1]), shown.settled)
        save_figure(figure, path)


def _head(part: SubFigure, letter: str, finding: str) -> None:
    part.suptitle(f"({letter})  {finding}", x=0.02, ha="left", fontsize=11, fontweight="bold")


def _draw_steepness(part: SubFigure, shown: Steepness) -> None:
    _head(
        part,
        "a",
        "FM on two points: the field is nearly discontinuous,\n"
        f"its slope in x up to {shown.learned.max():.0f}, and {shown.exact.max():.0f} in the exact field",
    )
    field, slope = part.subplots(1, 2, width_ratios=[2, 1])
    reach = float(np.abs(shown.velocity).max())
    picture = field.pcolormesh(
        shown.times, shown.places, shown.velocity, cmap="PuOr", vmin=-reach, vmax=reach, rasterized=True
    )
    field.plot(shown.path_times, shown.paths, color="black", linewidth=_THIN)
    field.plot([1, 1], [-1, 1], "o", color="black", markersize=6, clip_on=False, zorder=5)
    field.set(xlabel="t", ylabel="x", title="learned v(t, x), and paths", ylim=(-1.8, 1.8), xlim=(0, 1))
    part.colorbar(picture, ax=field, label="v", aspect=30, pad=0.02)
    slope.semilogy(shown.times, shown.exact, color=_ORANGE, linestyle="--", label="exact field")
    slope.semilogy(shown.times, shown.learned, color=_BLUE, label="learned field")
    slope.set(xlabel="t", title="largest |∂v/∂x|", xlim=(0, 1))
    slope.legend(loc="upper left")


def _draw_detours(part: SubFigure, shown: Figure1) -> None:
    longest = max(of_net.length for of_net in shown.detours.values())
    _head(
        part,
        "b",
        "Trained by the reconstruction alone: the loss sees ends only,\n"
        f"and paths may be {longest:.1f} times as long as straight lines",
    )
    panels = part.subplots(1, len(shown.detours), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (name, of_net) in zip(panels, shown.detours.items(), strict=True):
        panel.plot(of_net.shown[:, :, 0], of_net.shown[:, :, 1], color=_BLUE, linewidth=_THIN, alpha=0.8)
        panel.plot(*of_net.shown[0].T, ".", color=_GREY, markersize=5, label="noise")
        panel.plot(*of_net.shown[-1].T, "o", color=_ORANGE, markersize=4, label="sample")
        panel.plot(*shown.points.T, "x", color="black", markersize=7, label="data")
        panel.set(title=f"{_name(name)}\npath length {of_net.length:.2f}\nspread {of_net.spread:.2f}")
        panel.set_box_aspect(1)
    panels[0].set(xlim=(-3, 3), ylim=(-3, 3))
    handles, labels = panels[0].get_legend_handles_labels()
    part.legend(handles, labels, loc="outside lower center", ncols=3)


def _name(net: str) -> str:
    """What a net of ``mle<k>-<coupling>`` was trained on."""
    number, _, coupling = net.partition("-")
    return f"{coupling.replace('_', ' ')} pairs, net {number.removeprefix('mle')}"


def _draw_disturbed(part: SubFigure, shown: Figure1) -> None:
    worst = max(float(of_net.deviation.max()) for of_net in shown.free.values())
    bound = shown.contracting.bound
    kept = "is certified within" if bound is not None else "stays within"
    limit = float((shown.contracting.deviation if bound is None else bound).max())
    _head(
        part,
        "c",
        f"A force of {shown.force:g}: the ISS system {kept} {limit:.2f},\n"
        f"unconstrained ones are moved by up to {worst:.1f}",
    )
    left, middle, right = part.subplots(1, 3)
    _draw_followers(left, shown.demonstrated, [shown.contracting.paths], _GREEN)
    left.set_title("contracting by construction")
    _draw_followers(middle, shown.demonstrated, [of_net.paths[:, ::5] for of_net in shown.free.values()], _BLUE)
    middle.set_title(f"unconstrained, {len(shown.free)} trainings")
    for number, of_net in enumerate(shown.free.values()):
        label = "unconstrained" if number == 0 else None
        right.semilogy(of_net.times[1:], of_net.deviation[1:].max(axis=1), color=_BLUE, linewidth=_THIN, label=label)
    mine = shown.contracting
    right.semilogy(mine.times[1:], mine.deviation[1:].max(axis=1), color=_GREEN, linewidth=2, label="contracting")
    if bound is not None:
        right.semilogy(mine.times[1:], bound[1:], color="black", linestyle="--", label="certified bound")
    right.set(title="largest deviation", xlabel="time", xlim=(0, mine.times[-1]), ylim=(0.05, None))
    right.set_box_aspect(1)
    handles, labels = right.get_legend_handles_labels()
    part.legend(handles, labels, loc="outside lower center", ncols=3)


def _draw_followers(panel: Axes, demonstrated: Array, paths: list[Array], color: str) -> None:
    for some in paths:
        panel.plot(some[:, :, 0], some[:, :, 1], color=color, linewidth=0.6, alpha=0.6)
    panel.plot(*demonstrated.T, color="black", linewidth=1.6)
    panel.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4))
    panel.set_box_aspect(1)


def _draw_settled(part: SubFigure, shown: Settled) -> None:
    stable, count = int(shown.stable.sum()), len({region.center.tobytes() for region in shown.regions})
    _head(
        part, "d", f"{stable} stable states, {count} with certified regions\nin which all solutions approach each other"
    )
    panel = part.subplots()
    x, y = shown.places[0, :, 0], shown.places[:, 0, 1]
    panel.pcolormesh(x, y, shown.target, cmap=_PALE, vmin=-1, vmax=1, rasterized=True)
    panel.streamplot(
        x, y, shown.velocity[..., 0], shown.velocity[..., 1], color="#999999", linewidth=0.6, density=1.1, arrowsize=0.7
    )
    for share, line in zip(sorted({region.share for region in shown.regions}), _REGION_LINES, strict=False):
        regions = [region for region in shown.regions if region.share == share]
        label = f"certified to contract at {min(region.rate for region in regions):.2f}"
        outlines = np.stack([region.outline for region in regions], axis=1)
        lines = panel.plot(outlines[..., 0], outlines[..., 1], color=_GREEN, linestyle=line, linewidth=2)
        lines[0].set_label(label)
    stable_ones = shown.stable.astype(bool)
    panel.plot(*shown.equilibria[stable_ones].T, "o", color="black", label="stable state")
    panel.plot(*shown.equilibria[~stable_ones].T, "o", color="black", markerfacecolor="white", label="unstable state")
    panel.set(aspect="equal", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel="$x_1$", ylabel="$x_2$")
    panel.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
