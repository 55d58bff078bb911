"""Table 1: how far generated images are from real ones, a row for each method, solver and NFE.

Everything is computed from the distances of single sampling seeds. A row is one trained model: its interval is over
sampling noise, and says nothing of what another training would give.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.evaluation.intervals import t_interval
from pipeline.utils.errors import UserError

DISTANCES_HEADER = (
    "scale,dataset,method,finetuned_nfe,solver,nfe,sampling_seed,n_samples,features,distance,"
    "train_steps,train_seed,checkpoint,precision"
)
HALVES_HEADER = "scale,dataset,split_seed,n_samples,features,distance"
TABLE1_HEADER = (
    "method,solver,nfe,finetuned_nfe,distance,distance_low,distance_high,features,n_samples,scale,dataset,"
    "train_steps,train_seeds,sampling_seeds,paper_fid,paper_nfe,paper_comparable,precision"
)
SAMPLE_METRICS = ("kid", "sample_precision", "sample_recall")
"""Columns that both tables have at the end where they were measured, see ``pipeline.evaluation.sample_metrics``."""

IMAGE_METHODS = {
    "untrained": "Untrained net",
    "ddpm": "DDPM",
    "vp_fm": "VP-FM",
    "ve_fm": "VE-FM",
    "ot_fm": "OT-FM",
    "si": "SI",
    "i_cfm": "I-CFM",
    "ot_cfm": "OT-CFM",
    "ft_fm": "FT-FM (ours)",
    "resft_fm": "ResFT-FM (ours)",
}
"""In the order of the table; the untrained net is a yardstick."""

ADAPTIVE = "dopri5"
SOLVERS = ("euler", "ancestral", ADAPTIVE)
DISTANCE_NAMES = {"embedded": "FD", "inception": "FID"}
"""What the distance is called, by its features: FID is kept for those of Inception."""

_NONE = math.nan
PAPER: Mapping[str, tuple[float, float, float, float]] = {
    "ddpm": (_NONE, _NONE, 7.48, 274),
    "vp_fm": (7.772, 4.048, 4.335, 525.92),
    "ot_fm": (4.640, 3.822, 3.655, 143.00),
    "si": (4.488, 4.132, 4.009, 146.12),
    "i_cfm": (4.461, 3.643, 3.659, 146.42),
    "ot_cfm": (4.443, 3.741, 3.577, 133.94),
    "ft_fm": (4.451, 3.620, 3.496, 146.42),
    "resft_fm": (_NONE, _NONE, 3.553, 460.07),
}
"""The paper's Table 1: FID by Euler with 100 and 1000 steps and by dopri5, and dopri5's NFE."""
_PAPER_NUMBER = {("euler", 100): 0, ("euler", 1000): 1}
_PAPER_SAMPLES = 50_000


class Halves(NamedTuple):
    """Distance between two disjoint halves of the real data, over random splits.

    Attributes:
        mean, std: over splits; ``std`` (n − 1) is NaN with a single one. n_samples: images in a half.
    """

    mean: float
    std: float
    n_samples: int
    splits: int


def table1_rows(distances: pd.DataFrame) -> pd.DataFrame:
    """The rows of Table 1, in its order of methods, then fixed-step solvers by NFE, then dopri5.

    ``distances`` (columns as in ``DISTANCES_HEADER``) has a row for each sampling seed, of one scale, data set and kind
    of features. A row of the table is their mean with ``t_interval``, cut at 0, which no distance is below; NFE is the
    number asked for, or for dopri5 the mean of those measured.

    Raises:
        UserError: a column or all rows are missing, a name is unknown, a distance is not finite, a sampling seed stands
            there twice, or a row would mix models or sample sizes.
    """
    # older files do not say
    precision = distances["precision"].fillna("") if "precision" in distances.columns else ""
    distances = distances.assign(precision=precision)
    require_columns(distances, DISTANCES_HEADER, "distances")
    for column, allowed in (("method", IMAGE_METHODS), ("solver", SOLVERS), ("features", DISTANCE_NAMES)):
        for name in distances[column].unique():
            if name not in allowed:
                raise UserError(f"distances: {column}: given {name}, allowed: {', '.join(allowed)}")
    for column in ("scale", "dataset", "features"):
        one_of(distances, column, "distances")
    # dopri5's NFE is measured, so it differs between the seeds of one row
    asked = distances["nfe"].mask(distances["solver"] == ADAPTIVE, 0).rename("asked")
    groups = distances.groupby(["method", "solver", asked, "finetuned_nfe"], sort=False)
    rows = [_row(of_row) for _, of_row in groups]
    order = list(IMAGE_METHODS)
    rows.sort(key=lambda row: (order.index(row["method"]), row["solver"] == ADAPTIVE, row["nfe"], row["finetuned_nfe"]))
    measured = [name for name in SAMPLE_METRICS if name in distances.columns]
    return pd.DataFrame(rows, columns=[*TABLE1_HEADER.split(","), *measured]).round(6)


def _row(of_row: pd.DataFrame) -> dict:
    first = of_row.iloc[0]
    where = f"distances: {first['method']}, {solver_key(first['solver'], first['nfe'])}"
    for column in ("n_samples", "train_steps", "train_seed", "checkpoint"):
        one_of(of_row, column, where)
    if of_row["sampling_seed"].duplicated().any():
        twice = of_row.loc[of_row["sampling_seed"].duplicated(), "sampling_seed"].iloc[0]
        raise UserError(f"{where}: sampling seed {twice} stands there twice")
    if not np.isfinite(of_row["distance"]).all():
        raise UserError(f"{where}: a distance is not finite")
    interval = t_interval(of_row["distance"])
    nfe = of_row["nfe"].mean()
    fid, paper_nfe = _paper_numbers(first["method"], first["solver"], nfe)
    as_paper = (first["scale"], first["features"], first["n_samples"]) == ("paper", "inception", _PAPER_SAMPLES)
    return {
        **{column: first[column] for column in ("method", "solver", "finetuned_nfe", "features", "n_samples")},
        **{column: first[column] for column in ("scale", "dataset", "train_steps", "precision")},
        "nfe": nfe,
        "distance": interval.mean,
        "distance_low": max(0.0, interval.low) if math.isfinite(interval.low) else interval.low,
        "distance_high": interval.high,
        "train_seeds": str(first["train_seed"]),
        "sampling_seeds": len(of_row),
        "paper_fid": fid,
        "paper_nfe": paper_nfe,
        "paper_comparable": as_paper and math.isfinite(fid),
        **{name: of_row[name].mean() for name in SAMPLE_METRICS if name in of_row.columns},
    }


def _paper_numbers(method: str, solver: str, nfe: float) -> tuple[float, float]:
    if method not in PAPER:
        return _NONE, _NONE
    numbers = PAPER[method]
    if solver == ADAPTIVE:
        return numbers[2], numbers[3]
    fid = numbers[_PAPER_NUMBER[solver, int(nfe)]] if (solver, nfe) in _PAPER_NUMBER else _NONE
    return fid, nfe if math.isfinite(fid) else _NONE


def yardstick(halves: pd.DataFrame | None, table: pd.DataFrame) -> Halves | None:
    """What ``halves`` (columns as in ``HALVES_HEADER``) says of the data of ``table``; None where there is none.

    Raises:
        UserError: a column is missing, or they are of another scale, data set or kind of features than ``table``.
    """
    if halves is None or halves.empty:
        return None
    require_columns(halves, HALVES_HEADER, "halves")
    for column in ("scale", "dataset", "features"):
        given, allowed = one_of(halves, column, "halves"), table[column].iloc[0]
        if given != allowed:
            raise UserError(f"halves: {column}: given {given}, allowed: {allowed}, that of the distances")
    n_samples = one_of(halves, "n_samples", "halves")
    return Halves(halves["distance"].mean(), halves["distance"].std(), int(str(n_samples)), len(halves))


def solver_key(solver: str, nfe: float) -> str:
    """A column of the table, by the name that settings give its solver: ``euler-<k>`` or ``dopri5``.

    DDPM's k ancestral steps stand in the column of k Euler steps.
    """
    return ADAPTIVE if solver == ADAPTIVE else f"euler-{nfe:.0f}"


def shown_cells(table: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
    """The row of ``table`` to show for each (method, ``solver_key``).

    Where several fine-tuned models were evaluated with one solver, it is the one fine-tuned for that NFE, or else the
    one fine-tuned for the most: chosen by its making, never by its distance.
    """
    cells: dict[tuple[str, str], pd.Series] = {}
    for _, row in table.sort_values("finetuned_nfe").iterrows():
        place = row["method"], solver_key(row["solver"], row["nfe"])
        if place not in cells or not _made_for_it(cells[place]):
            cells[place] = row
    return cells


def _made_for_it(row: pd.Series) -> bool:
    return row["solver"] != ADAPTIVE and row["finetuned_nfe"] == row["nfe"]


def one_of(frame: pd.DataFrame, column: str, what: str) -> object:
    """The one value in ``column``.

    Raises:
        UserError: there are several.
    """
    values = frame[column].unique()
    if len(values) != 1:
        raise UserError(f"{what}: {column}: given {', '.join(map(str, values))}, allowed: one for all")
    return values[0]


def require_columns(frame: pd.DataFrame, header: str, what: str) -> None:
    """Check that ``frame`` has rows, and the columns of ``header``.

    Raises:
        UserError: it lacks one of them.
    """
    absent = [name for name in header.split(",") if name not in frame.columns]
    if absent:
        raise UserError(f"{what}: column {absent[0]} is missing, expected {header}")
    if frame.empty:
        raise UserError(f"{what}: has no rows")


def span(values: pd.Series) -> str:
    """Its one value, or from what to what it goes."""
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"
