"""What Figure 1 shows, in words and numbers."""

import numpy as np
import pandas as pd

from pipeline.evaluation.figure_1 import Figure1
from pipeline.evaluation.toy_flows import Detours
from pipeline.evaluation.toy_systems import Disturbed
from pipeline.stability.certificate import CERTIFIED, REFUTED

FIGURE_1_HEADER = "scale,panel,model,quantity,value"

_ABOUT = """\
# Figure 1, from trained models

The paper's Figure 1 is a sketch. Here every curve is of a model that was trained by `train_toys`, seconds each, and
drawn by `draw`: scale `{scale}`, seed {seed}. The numbers are in `figure_1.csv`.

![Figure 1]({picture})

"""

_STEEP = """\
## (a) A field that is nearly discontinuous

A net learned by flow matching to carry noise to two points, -1 and 1, on an I-CFM path (`sigma` {sigma:g}). Noise
on either side of zero has to part, and the later it does, the steeper the field: the learned field's largest slope
in x is {learned:.0f}, at t = {learned_at:.2f}. The field that flow matching aims at, known in closed form here,
reaches {exact:.0f} at t = {exact_at:.2f}: the net is {smoother:.0f} times less steep than what it is trained
towards. Two starts {start_apart:g} apart, either side of zero, end {apart:.2f} apart. Slopes are the largest on a
grid of states within 1.8 of zero, so lower estimates of Lipschitz constants.

"""

_DETOURS = """\
## (b) The reconstruction loss alone

Neural ODEs trained from scratch on eight points by loss (6) through {nfe} Euler steps, without flow matching
before. *Path length* is the mean length of a path over the mean distance between its ends, so 1 is straight.
*Error* is the distance of a sample from the nearest of the data, as trained and in a solve of 400 steps, which is
the flow itself. *Spread* is the samples' scatter over that of the data. The exact field of flow matching is there
to compare with.

| Model | Path length | Error as trained | Error of a fine solve | Spread |
| --- | --- | --- | --- | --- |
{rows}

Independent pairs send every noise to the mean of the data, the loss's best answer, and the modes collapse. Where
each datum chooses the nearest of {candidates} candidates, the modes stay. Nothing in the loss asks for short paths
or for a field that means the same in finer steps: both are left to the initial weights, in which the nets of one
coupling differ.

"""

_DISTURBED = """\
## (c) Disturbed, with and without ISS

Systems x' = A0 x + A1 tanh(W x) + g(u) that are told the time by u and imitate the velocities of a figure of eight,
on the curve and nowhere else. One contracts at rate {rate:g} whatever its parameters, the {count} others are
unconstrained and differ in their initial weights. All are pushed for two laps by the same 16 forces of size
{force:g} whose direction wanders.

- Contracting: the certificate of its stored weights is `{status}`. It {kept}; undisturbed it stays within
  {tracking:.2g} of the curve.
- Unconstrained: the largest deviation of each is between {least:.2f} and {most:.2f}. {refuted} of {count} are
  refuted: states were found that separate. {certified} of {count} turn out to contract, at a rate of at least
  {small:g}: training alone may end in a stable system, but does not have to. Undisturbed, they stay within
  {near:.2g} to {far:.2g} of the curve.

"""

_SETTLED = """\
## (d) Contraction regions

A system of the same kind, unconstrained, trained to bring states left of zero to one place and the others to
another. It has {stable} stable and {unstable} unstable equilibria, so it cannot contract everywhere. Theorem 4
gives ellipses around the stable ones in which any two solutions approach each other, proved for the stored weights.
The larger an ellipse, the lower the rate that holds all over it. *Seen* is the smallest rate at which pairs of
solutions from an ellipse's rim were seen to approach. Inputs within the *input radius*, in the ellipse's norm, keep
solutions inside.

{regions}
Colours tell which equilibrium a state ends at.
"""


def figure_1_markdown(
    shown: Figure1, picture: str, *, scale: str, seed: int, sigma: float, nfe: int, candidates: int
) -> str:
    """What each panel of ``shown`` says; ``picture`` is the file name beside it, the rest settings."""
    steep, mine, free = shown.steepness, shown.contracting, list(shown.free.values())
    largest = [float(one.deviation.max()) for one in free]
    status = [one.status for one in free]
    return "".join(
        [
            _ABOUT.format(scale=scale, seed=seed, picture=picture),
            _STEEP.format(
                sigma=sigma,
                learned=steep.learned.max(),
                learned_at=steep.times[steep.learned.argmax()],
                exact=steep.exact.max(),
                exact_at=steep.times[steep.exact.argmax()],
                smoother=steep.exact.max() / steep.learned.max(),
                start_apart=steep.start_apart,
                apart=steep.apart,
            ),
            _DETOURS.format(
                nfe=nfe,
                candidates=candidates,
                rows="\n".join(
                    _detours_row(name, one)
                    for name, one in [*shown.detours.items(), ("exact field of FM", shown.exact)]
                ),
            ),
            _DISTURBED.format(
                rate=mine.rate,
                count=len(free),
                force=shown.force,
                status=mine.status,
                kept=_kept(mine),
                tracking=mine.tracking,
                least=min(largest),
                most=max(largest),
                refuted=status.count(REFUTED),
                certified=status.count(CERTIFIED),
                small=min(one.rate for one in free),
                near=min(one.tracking for one in free),
                far=max(one.tracking for one in free),
            ),
            _SETTLED.format(
                stable=int(shown.settled.stable.sum()),
                unstable=int((shown.settled.stable == 0).sum()),
                regions=_regions(shown),
            ),
        ]
    )


def _detours_row(name: str, one: Detours) -> str:
    return f"| {name} | {one.length:.2f} | {one.error:.2f} | {one.fine_error:.2f} | {one.spread:.2f} |"


def _kept(mine: Disturbed) -> str:
    moved = f"is moved by at most {mine.deviation.max():.2f}"
    return moved if mine.bound is None else f"{moved}, and certified to be moved by no more than {mine.bound.max():.2f}"


def _regions(shown: Figure1) -> str:
    if not shown.settled.regions:
        return "No region could be certified.\n"
    lines = ["| Around | Certified rate | Seen | Area | Input radius |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| ({one.center[0]:.2f}, {one.center[1]:.2f}) | {one.rate:.2f} | {one.slowest:.2f} | {one.area:.2f} "
        f"| {one.input_radius:.2f} |"
        for one in shown.settled.regions
    ]
    return "\n".join(lines) + "\n"


def figure_1_table(shown: Figure1, scale: str) -> pd.DataFrame:
    """The figure's numbers, one row a number, to six digits."""
    steep = shown.steepness
    rows: list[tuple[str, str, str, float]] = [
        ("a", "fm", "largest_slope", steep.learned.max()),
        ("a", "exact", "largest_slope", steep.exact.max()),
        ("a", "fm", "end_distance", steep.apart),
    ]
    for name, detours in {**shown.detours, "exact": shown.exact}.items():
        rows += [
            ("b", name, quantity, getattr(detours, quantity))
            for quantity in ("length", "error", "fine_error", "spread")
        ]
    for name, disturbed in {"follow-contracting": shown.contracting, **shown.free}.items():
        rows += [
            ("c", name, "largest_deviation", disturbed.deviation.max()),
            ("c", name, "tracking_error", disturbed.tracking),
            ("c", name, "certified_rate", disturbed.rate if disturbed.status == CERTIFIED else 0.0),
            ("c", name, "bound", np.nan if disturbed.bound is None else disturbed.bound.max()),
        ]
    for number, region in enumerate(shown.settled.regions):
        rows += [
            ("d", f"region{number}", quantity, value)
            for quantity, value in (
                ("center_1", region.center[0]),
                ("center_2", region.center[1]),
                ("certified_rate", region.rate),
                ("seen_rate", region.slowest),
                ("area", region.area),
                ("input_radius", region.input_radius),
            )
        ]
    values = [(scale, *row[:3], float(f"{row[3]:.6g}")) for row in rows]
    return pd.DataFrame(values, columns=FIGURE_1_HEADER.split(","))
