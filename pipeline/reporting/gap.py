"""Tabulate and draw the gap of inference: Theorem 1's bounds beside the real error, as CSV, Markdown and panels."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline.evaluation.gap import Gap
from pipeline.reporting.figures import drawing
from pipeline.reporting.tables import document, markdown_table

GAP_HEADER = "scale,dataset,solver,grid,nfe,error,bound_variable,bound_uniform,bound_max_step,bound_product,vacuous"

BOUNDS = {
    "bound_product": "product form",
    "bound_uniform": "equal steps, the paper's (5)",
    "bound_max_step": "largest step",
    "bound_variable": "any grid, the paper's (4)",
}
"""Columns of the four forms, from the sharpest to the loosest, and their names."""

_SOLVER_STYLES = {
    "euler": ("#0072B2", "o"),
    "midpoint": ("#009E73", "^"),
    "heun": ("#E69F00", "v"),
    "rk4": ("#D55E00", "s"),
}
_BOUND_STYLES = {
    "bound_product": ("#0072B2", "--"),
    "bound_uniform": ("#56B4E9", "-."),
    "bound_max_step": ("#999999", ":"),
    "bound_variable": ("#555555", (0, (1, 3))),
}
_DIGITS = 6


def gap_table(scale: str, gaps: Mapping[str, Sequence[Gap]]) -> pd.DataFrame:
    """One row a solve, to six digits; ``gaps`` are those of each data set. A bound that overflows is infinite."""
    rows = [
        {
            "scale": scale,
            "dataset": dataset,
            **{name: getattr(gap, name) for name in ("solver", "grid", "nfe", "vacuous")},
            "error": _rounded(gap.error),
            "bound_variable": _rounded(gap.variable),
            "bound_uniform": math.nan if gap.uniform is None else _rounded(gap.uniform),
            "bound_max_step": _rounded(gap.max_step),
            "bound_product": _rounded(gap.product),
        }
        for dataset, of_dataset in gaps.items()
        for gap in of_dataset
    ]
    return pd.DataFrame(rows, columns=GAP_HEADER.split(","))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


_ABOUT = """\
# From training error to inference error: Theorem 1, measured

`dvc repro measure_gap` makes this. For data that are a few points, Gaussian noise and independent pairs, the field that
flow matching aims at is known in closed form. A net is trained by flow matching on such data, solved, and compared with
the exact flow of that field from the same noise.

- *Error*: the largest distance between the two ends, over {trajectories} trajectories, in units of the data.
- *ε*: the largest error of the net's field at the numerical states. *L*: the largest Lipschitz constant of the true
  field between numerical and true states. *C*: the truncation error of a step over τ^(p+1), p the solver's order; for
  Euler that is ½M, M the largest |x''| on the true paths. For other solvers field means the increment of a step
  (`pipeline/ode/error_bound.py`). All three are maxima over these trajectories: lower estimates of the theorem's
  suprema, and enough for bounds that hold for these trajectories.
- *Bounds*: log10 of bound over error, so 0 is exact and 3 is a thousand times too large. *Product* takes each step's
  own constants, the others the largest. (5) is for equal steps, (4) for any. *> 308* is more than a floating-point
  number holds.
- *Vacuous*: even the smallest bound is at least the data set's diameter, so it says nothing.
- *Grid*: *early* has its short steps at the start of the flow, *late* at the end, *adaptive* are the steps that dopri5
  accepts (tolerance {tolerance:g}); its NFE count the accepted steps.

The paths are I-CFM's, with noise of deviation *sigma* around the line from noise to datum. Flows are solved from 0 to
{end:g}: towards 1 the true field's L grows, the more the smaller sigma. Scale `{scale}`, one net a data set and sigma,
{steps} training steps, training seed {seed}."""


def gap_markdown(table: pd.DataFrame, gaps: Mapping[str, Sequence[Gap]], picture: str, **about: float | str) -> str:
    """The Markdown twin of ``table``, with the constants of ``gaps``, from which it was made.

    Args:
        picture: a file name beside it. about: trajectories, tolerance, end, steps and seed of the measurement.
    """
    head = ["Data", "Solver", "Grid", "NFE", "Error", "ε", "L", "C"]
    head += ["Product", "(5)", "Largest step", "(4)", "Vacuous"]
    constants = [gap for of_dataset in gaps.values() for gap in of_dataset]
    rows = [
        (
            *(row[key] for key in ("dataset", "solver", "grid", "nfe")),
            *(f"{row['error']:.2g}", f"{gap.field_error:.2g}", f"{gap.lipschitz:.3g}", f"{gap.truncation:.2g}"),
            *(_ratio(row[bound], row["error"]) for bound in BOUNDS),
            "yes" if row["vacuous"] else "no",
        )
        for (_, row), gap in zip(table.iterrows(), constants, strict=True)
    ]
    return document(
        _ABOUT.format(scale=table["scale"].iloc[0], **about),
        "## What came out",
        "\n".join(_summary(table)),
        f"![{picture}]({picture})",
        "## Every solve",
        markdown_table(rows, head),
    )


def _ratio(bound: float, error: float) -> str:
    if math.isnan(bound):
        return "—"
    return "> 308" if math.isinf(bound) else f"{math.log10(bound / error):.1f}"


def _summary(table: pd.DataFrame) -> list[str]:
    """Sentences made from the numbers of the table."""
    held = (table[list(BOUNDS)].isna() | table[list(BOUNDS)].ge(table["error"], axis=0)).all(axis=1)
    ratio = table["bound_product"] / table["error"]
    lines = [
        f"- Every bound is at or above the error in {held.sum()} of {len(table)} solves.",
        f"- The product form is above the error by a factor of {ratio.min():.2g} to {ratio.max():.2g} "
        f"(median {ratio.median():.2g}).",
        f"- In {table['vacuous'].sum()} of {len(table)} solves all bounds are vacuous.",
    ]
    for bound in ("bound_uniform", "bound_variable"):
        euler = table[(table["solver"] == "euler") & table[bound].notna()]
        if euler.empty:
            continue
        powers = np.log10(euler[bound] / euler["error"])
        lines.append(
            f"- For Euler, the form for {BOUNDS[bound]}, is above the error by a factor of 10^{powers.min():.1f} "
            f"to 10^{powers.max():.1f}."
        )
    even = table[table["grid"] == "uniform"]
    for grid in ("early", "late"):
        other = even.merge(table[table["grid"] == grid], on=["dataset", "solver", "nfe"], suffixes=("", "_other"))
        if other.empty:
            continue
        lower = (other["error_other"] < other["error"]).sum()
        looser = (other["bound_variable_other"] > other["bound_variable"]).sum()
        lines.append(
            f"- The {grid} grid ends nearer to the true flow than equal steps in {lower} of {len(other)} solves; (4) "
            f"is looser in {looser} (Remark 1 of the paper: variable steps raise the bound)."
        )
    return lines


def gap_panels(table: pd.DataFrame, path: Path) -> None:
    """Error and bounds against NFE on equal steps, a column a data set; ``.png`` and ``.svg``.

    Above: Euler's error and its four bounds. Below: every solver's error, and its product form dashed.
    """
    even = table[table["grid"] == "uniform"]
    datasets, numbers = list(dict.fromkeys(table["dataset"])), sorted(even["nfe"].unique())
    with drawing(path, 3 * len(datasets) + 0.5, 5.6) as figure:
        panels = figure.subplots(2, len(datasets), sharex=True, squeeze=False)
        for (above, below), dataset in zip(panels.T, datasets, strict=True):
            of_dataset = even[even["dataset"] == dataset]
            _draw_bounds(above, of_dataset[of_dataset["solver"] == "euler"])
            above.set_title(dataset)
            for solver, rows in of_dataset.groupby("solver", sort=False):
                color, marker = _SOLVER_STYLES[str(solver)]
                below.loglog(rows["nfe"], rows["error"], color=color, marker=marker, label=f"{solver}: error")
                below.loglog(rows["nfe"], rows["bound_product"], color=color, linestyle="--")
            below.set_xlabel("NFE")
            below.set_xticks(numbers, labels=[str(nfe) for nfe in numbers])
            below.minorticks_off()
        panels[0, 0].set_ylabel("Euler: error and bounds")
        panels[1, 0].set_ylabel("error, and product form (dashed)")


def _draw_bounds(panel: Axes, rows: pd.DataFrame) -> None:
    panel.loglog(rows["nfe"], rows["error"], color="#0072B2", marker="o", label="euler: error")
    for bound, name in BOUNDS.items():
        color, line = _BOUND_STYLES[bound]
        panel.loglog(rows["nfe"], rows[bound], color=color, linestyle=line, label=name)
