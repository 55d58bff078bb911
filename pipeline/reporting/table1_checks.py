"""What Table 1 must show if training worked and fine-tuning paid, answered from its numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.reporting.table1 import IMAGE_METHODS, Halves, shown_cells

UNTRAINED_SHARE = 0.1
HALVES_FACTOR = 5
CHECKED = "euler-100"
FEW_STEPS = (1, 2, 4)

Cells = Mapping[tuple[str, str], pd.Series]


@dataclass(frozen=True)
class Check:
    """One question, and its answer: yes, no, or None where the numbers cannot say."""

    question: str
    numbers: str
    holds: bool | None


def checks(table: pd.DataFrame, halves: Halves | None) -> list[Check]:
    """Whether training and few-step fine-tuning did what they should, by the rows of ``table`` (``table1_rows``).

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
    found = [row[f"distance_{side}"] for row in (tuned, base) for side in ("low", "high")]
    low, high, base_low, base_high = found
    single = bool(np.isnan(found).any())
    between = (
        "a single sampling seed has no interval"
        if single
        else f"{_bounds(low, high)} and {_bounds(base_low, base_high)}"
    )
    apart = None if single else bool(high < base_low or base_high < low)
    return [Check(questions[0], numbers, bool(difference < 0)), Check(questions[1], between, apart)]


def _not_to_compare(mine: pd.Series | None, other: pd.Series | None) -> str:
    """Why two rows cannot be compared, or nothing."""
    if mine is None or other is None:
        return "a row is not there"
    if mine["n_samples"] != other["n_samples"]:  # the distance is biased, by more the fewer the images
        return f"from {mine['n_samples']} and {other['n_samples']} images"
    return ""


def _bounds(low: float, high: float) -> str:
    return f"[{digits(low)}, {digits(high)}]"


def digits(value: float, *, sign: bool = False) -> str:
    """``value`` to about four significant digits, without an exponent; — if it is missing."""
    if np.isnan(value):
        return "—"
    decimals = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 3
    return f"{value:{'+' if sign else ''}.{decimals}f}"
