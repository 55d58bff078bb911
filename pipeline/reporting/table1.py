"""Compute Table 1: how far generated images are from real ones, a row for each method, solver and NFE.

Everything is computed from the distances of single sampling seeds. A row is one trained model: its interval is over
sampling noise, and says nothing of what another training would give.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.evaluation.intervals import t_interval
from pipeline.reporting.tables import one_of, require
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
"""Columns that both have at the end where they were measured, see ``pipeline.evaluation.sample_metrics``."""

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
"""Names of the distance, by its features: FID is kept for those of Inception."""

UNTRAINED_SHARE = 0.1
HALVES_FACTOR = 5
CHECKED = "euler-100"
FEW_STEPS = (1, 2, 4)

Cells = Mapping[tuple[str, str], pd.Series]
"""Rows by method and solver, see ``shown_cells``."""

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
PAPER_SOLVERS = ("euler-100", "euler-1000", ADAPTIVE)
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
    require(distances, DISTANCES_HEADER, "distances")
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
    key = solver_key(solver, nfe)
    if method not in PAPER or solver == "ancestral" or key not in PAPER_SOLVERS:
        return _NONE, _NONE
    *fids, adaptive_nfe = PAPER[method]
    fid = fids[PAPER_SOLVERS.index(key)]
    return fid, adaptive_nfe if key == ADAPTIVE else nfe if math.isfinite(fid) else _NONE


def yardstick(halves: pd.DataFrame | None, table: pd.DataFrame) -> Halves | None:
    """Read ``halves`` (columns as in ``HALVES_HEADER``) as a yardstick of the data of ``table``; None without any.

    Raises:
        UserError: a column is missing, or they are of another scale, data set or kind of features than ``table``.
    """
    if halves is None or halves.empty:
        return None
    require(halves, HALVES_HEADER, "halves")
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


@dataclass(frozen=True)
class Check:
    """One question, and its answer: yes, no, or None where the numbers cannot say."""

    question: str
    numbers: str
    holds: bool | None


def checks(table: pd.DataFrame, halves: Halves | None) -> list[Check]:
    """Check training and few-step fine-tuning by the rows of ``table`` (``table1_rows``).

    Every trained method with Euler 100 (DDPM: 100 ancestral steps) is held against a tenth of the untrained net's
    distance and against five times the mean plus one standard deviation of ``halves``; fine-tuning against the model
    that it starts from, at NFE 1, 2 and 4.
    """
    cells = shown_cells(table)
    trained = [method for method in IMAGE_METHODS if method in set(table["method"]) and method != "untrained"]
    found = [_against_untrained(cells, method) for method in trained]
    found += [_against_halves(cells, method, halves) for method in trained]
    for nfe in FEW_STEPS:
        found += _fine_tuned(cells, nfe)
    return found


def _against_untrained(cells: Cells, method: str) -> Check:
    question = f"{IMAGE_METHODS[method]}, Euler 100: at most a tenth of the untrained net's"
    mine, untrained = cells.get((method, CHECKED)), cells.get(("untrained", CHECKED))
    unknown = _not_to_compare(mine, untrained)
    if mine is None or untrained is None or unknown:
        return Check(question, unknown, None)
    limit = UNTRAINED_SHARE * untrained["distance"]
    numbers = f"{digits(mine['distance'])} against {UNTRAINED_SHARE:g} × {digits(untrained['distance'])}"
    return Check(question, f"{numbers} = {digits(limit)}", bool(mine["distance"] <= limit))


def _against_halves(cells: Cells, method: str, halves: Halves | None) -> Check:
    question = f"{IMAGE_METHODS[method]}, Euler 100: at most five times two halves of the real data"
    mine = cells.get((method, CHECKED))
    if mine is None or halves is None or np.isnan(halves.std):
        return Check(question, "a row is not there" if mine is None else "fewer than two splits into halves", None)
    limit = HALVES_FACTOR * (halves.mean + halves.std)
    numbers = f"{digits(mine['distance'])} against {HALVES_FACTOR} × ({digits(halves.mean)} + {digits(halves.std)})"
    return Check(question, f"{numbers} = {digits(limit)}", bool(mine["distance"] <= limit))


def _fine_tuned(cells: Cells, nfe: int) -> list[Check]:
    tuned, base = cells.get(("ft_fm", f"euler-{nfe}")), cells.get(("i_cfm", f"euler-{nfe}"))
    questions = [
        f"{IMAGE_METHODS['ft_fm']} below {IMAGE_METHODS['i_cfm']}, NFE {nfe}",
        f"Their intervals apart, NFE {nfe}",
    ]
    unknown = _not_to_compare(tuned, base)
    if tuned is None or base is None or unknown:
        return [Check(question, unknown, None) for question in questions]
    difference = tuned["distance"] - base["distance"]
    numbers = f"{digits(tuned['distance'])} - {digits(base['distance'])} = {digits(difference, sign=True)}"
    single = bool(np.isnan([row[f"distance_{side}"] for row in (tuned, base) for side in ("low", "high")]).any())
    between = "a single sampling seed has no interval" if single else f"{bounds(tuned)} and {bounds(base)}"
    overlap = tuned["distance_high"] >= base["distance_low"] and base["distance_high"] >= tuned["distance_low"]
    apart = None if single else not overlap
    return [Check(questions[0], numbers, bool(difference < 0)), Check(questions[1], between, apart)]


def _not_to_compare(mine: pd.Series | None, other: pd.Series | None) -> str:
    """Why two rows cannot be compared, or nothing."""
    if mine is None or other is None:
        return "a row is not there"
    if mine["n_samples"] != other["n_samples"]:  # the distance is biased, by more the fewer the images
        return f"from {mine['n_samples']} and {other['n_samples']} images"
    return ""


def bounds(row: pd.Series) -> str:
    """The interval of a row's distance."""
    return f"[{digits(row['distance_low'])}, {digits(row['distance_high'])}]"


def digits(value: float, *, sign: bool = False) -> str:
    """``value`` to about four significant digits, without an exponent; — if it is missing."""
    if np.isnan(value):
        return "—"
    decimals = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 3
    return f"{value:{'+' if sign else ''}.{decimals}f}"
