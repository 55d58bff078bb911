"""Report Figure 1, on small models: the picture, its numbers and a text about them."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import SubFigure

from pipeline.evaluation.figure_1 import Figure1, measure_figure_1
from pipeline.evaluation.toy_flows import Steepness
from pipeline.evaluation.toy_systems import Settled
from pipeline.reporting.figures import drawing
from pipeline.reporting.tables import Request, document, markdown_table
from pipeline.settings.paths import toys
from pipeline.stability.certificate import CERTIFIED, REFUTED
from pipeline.stability.system import Array
from pipeline.training.toys import load_toys
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.hardware import use_threads

FIGURE_1_HEADER = "scale,panel,model,quantity,value"

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
_PALE = ListedColormap(["#f2f2f2", "#dcebf5", "#fbe6d6"])
"""Ends nowhere, at the first, at the second equilibrium."""

_THIN = 0.8
_REGION_LINES = ("-", "--", ":")


def report(asked: Request) -> None:
    """Draw the figure of one scale, and write its numbers and words."""
    scale, settings, picture = asked.reports.scale, asked.settings.toys, asked.reports.figure_1
    use_threads(settings.threads)
    table, text = picture.with_suffix(".csv"), picture.with_suffix(".md")
    with asked.begin(deps=[toys(scale)], outs=[table, text, picture]):
        shown = measure_figure_1(*load_toys(toys(scale), settings), settings)
        draw_figure_1(shown, picture)
        write_csv(table, figure_1_table(shown, scale))
        about = settings.model_dump(include={"seed", "sigma", "nfe", "candidates"})
        write_text(text, figure_1_markdown(shown, picture.name, scale=scale, **about))


def figure_1_markdown(
    shown: Figure1, picture: str, *, scale: str, seed: int, sigma: float, nfe: int, candidates: int
) -> str:
    """Describe each panel of ``shown``; ``picture`` is the file name beside it, the rest settings."""
    about = f"""\
# Figure 1, from trained models

The paper's Figure 1 is a sketch. Here every curve is of a model that was trained by `train_toys`, seconds each, and
drawn by `draw`: scale `{scale}`, seed {seed}. The numbers are in `figure_1.csv`.

![Figure 1]({picture})"""
    return document(about, _steep(shown, sigma), _detours(shown, nfe, candidates), _disturbed(shown), _settled(shown))


def _steep(shown: Figure1, sigma: float) -> str:
    one = shown.steepness
    learned, exact = one.learned.max(), one.exact.max()
    learned_at, exact_at = one.times[one.learned.argmax()], one.times[one.exact.argmax()]
    start, end = one.start_apart, one.apart
    return f"""\
## (a) A field that is nearly discontinuous

A net learned by flow matching to carry noise to two points, -1 and 1, on an I-CFM path (`sigma` {sigma:g}). Noise
on either side of zero has to part, and the later it does, the steeper the field: the learned field's largest slope
in x is {learned:.0f}, at t = {learned_at:.2f}. The field that flow matching aims at, known in closed form here,
reaches {exact:.0f} at t = {exact_at:.2f}: the net is {exact / learned:.0f} times less steep than what it is trained
towards. Two starts {start:g} apart, either side of zero, end {end:.2f} apart. Slopes are the largest on a
grid of states within 1.8 of zero, so lower estimates of Lipschitz constants."""


def _detours(shown: Figure1, nfe: int, candidates: int) -> str:
    rows = [
        (name, *(f"{value:.2f}" for value in (one.length, one.error, one.fine_error, one.spread)))
        for name, one in [*shown.detours.items(), ("exact field of FM", shown.exact)]
    ]
    return f"""\
## (b) The reconstruction loss alone

Neural ODEs trained from scratch on eight points by loss (6) through {nfe} Euler steps, without flow matching
before. *Path length* is the mean length of a path over the mean distance between its ends, so 1 is straight.
*Error* is the distance of a sample from the nearest of the data, as trained and in a solve of 400 steps, which is
the flow itself. *Spread* is the samples' scatter over that of the data. The exact field of flow matching is there
to compare with.

{markdown_table(rows, ["Model", "Path length", "Error as trained", "Error of a fine solve", "Spread"])}

Independent pairs send every noise to the mean of the data, the loss's best answer, and the modes collapse. Where
each datum chooses the nearest of {candidates} candidates, the modes stay. Nothing in the loss asks for short paths
or for a field that means the same in finer steps: both are left to the initial weights, in which the nets of one
coupling differ."""


def _disturbed(shown: Figure1) -> str:
    mine, free = shown.contracting, list(shown.free.values())
    kept = f"is moved by at most {mine.deviation.max():.2f}"
    if mine.bound is not None:
        kept += f", and certified to be moved by no more than {mine.bound.max():.2f}"
    largest, near = [float(one.deviation.max()) for one in free], [one.tracking for one in free]
    least, most, small = min(largest), max(largest), min(one.rate for one in free)
    count, status = len(free), [one.status for one in free]
    refuted, certified = status.count(REFUTED), status.count(CERTIFIED)
    return f"""\
## (c) Disturbed, with and without ISS

Systems x' = A0 x + A1 tanh(W x) + g(u) that are told the time by u and imitate the velocities of a figure of eight,
on the curve and nowhere else. One contracts at rate {mine.rate:g} whatever its parameters, the {count} others are
unconstrained and differ in their initial weights. All are pushed for two laps by the same 16 forces of size
{shown.force:g} whose direction wanders.

- Contracting: the certificate of its stored weights is `{mine.status}`. It {kept}; undisturbed it stays within
  {mine.tracking:.2g} of the curve.
- Unconstrained: the largest deviation of each is between {least:.2f} and {most:.2f}. {refuted} of {count} are
  refuted: states were found that separate. {certified} of {count} turn out to contract, at a rate of at least
  {small:g}: training alone may end in a stable system, but does not have to. Undisturbed, they stay within
  {min(near):.2g} to {max(near):.2g} of the curve."""


def _settled(shown: Figure1) -> str:
    stable, unstable = (int((shown.settled.stable == kind).sum()) for kind in (1, 0))
    rows = [
        (
            f"({one.center[0]:.2f}, {one.center[1]:.2f})",
            *(f"{value:.2f}" for value in (one.rate, one.slowest, one.area, one.input_radius)),
        )
        for one in shown.settled.regions
    ]
    regions = "No region could be certified."
    if rows:
        regions = markdown_table(rows, ["Around", "Certified rate", "Seen", "Area", "Input radius"])
    return f"""\
## (d) Contraction regions

A system of the same kind, unconstrained, trained to bring states left of zero to one place and the others to
another. It has {stable} stable and {unstable} unstable equilibria, so it cannot contract everywhere. Theorem 4
gives ellipses around the stable ones in which any two solutions approach each other, proved for the stored weights.
The larger an ellipse, the lower the rate that holds all over it. *Seen* is the smallest rate at which pairs of
solutions from an ellipse's rim were seen to approach. Inputs within the *input radius*, in the ellipse's norm, keep
solutions inside.

{regions}

Colours tell which equilibrium a state ends at."""


def figure_1_table(shown: Figure1, scale: str) -> pd.DataFrame:
    """The figure's numbers, one row a number, to six digits."""
    steep = shown.steepness
    rows: list[tuple[str, str, str, float]] = [
        ("a", "fm", "largest_slope", steep.learned.max()),
        ("a", "exact", "largest_slope", steep.exact.max()),
        ("a", "fm", "end_distance", steep.apart),
    ]
    for name, detours in {**shown.detours, "exact": shown.exact}.items():
        rows += [("b", name, key, getattr(detours, key)) for key in ("length", "error", "fine_error", "spread")]
    for name, disturbed in {"follow-contracting": shown.contracting, **shown.free}.items():
        rows += [
            ("c", name, "largest_deviation", disturbed.deviation.max()),
            ("c", name, "tracking_error", disturbed.tracking),
            ("c", name, "certified_rate", disturbed.rate if disturbed.status == CERTIFIED else 0.0),
            ("c", name, "bound", np.nan if disturbed.bound is None else disturbed.bound.max()),
        ]
    for number, region in enumerate(shown.settled.regions):
        values = (*region.center, region.rate, region.slowest, region.area, region.input_radius)
        names = ("center_1", "center_2", "certified_rate", "seen_rate", "area", "input_radius")
        rows += [("d", f"region{number}", name, value) for name, value in zip(names, values, strict=True)]
    cells = [(scale, *row[:3], float(f"{row[3]:.6g}")) for row in rows]
    return pd.DataFrame(cells, columns=FIGURE_1_HEADER.split(","))


def draw_figure_1(shown: Figure1, path: Path) -> None:
    """Draw all four panels; writes ``path`` with the suffixes ``.png`` and ``.svg``."""
    with drawing(path, 13, 8, legend=False, axes_grid=False, axes_titlesize=9) as figure:
        grid = figure.add_gridspec(2, 2, width_ratios=[1.15, 1], hspace=0.05, wspace=0.03)
        _draw_steepness(figure.add_subfigure(grid[0, 0]), shown.steepness)
        _draw_detours(figure.add_subfigure(grid[0, 1]), shown)
        _draw_disturbed(figure.add_subfigure(grid[1, 0]), shown)
        _draw_settled(figure.add_subfigure(grid[1, 1]), shown.settled)


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
        panel.set(title=f"{_net_name(name)}\npath length {of_net.length:.2f}\nspread {of_net.spread:.2f}")
        panel.set_box_aspect(1)
    panels[0].set(xlim=(-3, 3), ylim=(-3, 3))
    handles, labels = panels[0].get_legend_handles_labels()
    part.legend(handles, labels, loc="outside lower center", ncols=3)


def _net_name(net: str) -> str:
    """The pairs that a net called ``mle<k>-<coupling>`` was trained on, and its number."""
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
