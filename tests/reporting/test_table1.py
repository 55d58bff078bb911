"""Table 1, from made-up distances with known results."""

import math
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.reporting.table1 import (
    DISTANCES_HEADER,
    HALVES_HEADER,
    IMAGE_METHODS,
    PAPER,
    TABLE1_HEADER,
    Halves,
    checks,
    digits,
    shown_cells,
    t_interval,
    table1_rows,
    yardstick,
)
from pipeline.reporting.table1_report import table1_markdown
from pipeline.utils.errors import UserError

HALVES = Halves(0.2, 0.02, 750, 5)


def cell(
    method: str,
    solver: str,
    nfe: float,
    distances: tuple[float, ...],
    *,
    tuned: int = 0,
    scale: str = "starter",
    features: str = "embedded",
    n_samples: int = 1500,
) -> list[tuple]:
    precision = "fp32" if method != "untrained" else ""
    key, about = (scale, "digits", method, tuned, solver, nfe), (4000, 7, f"{method}-{tuned}", precision)
    return [(*key, seed, n_samples, features, one, *about) for seed, one in enumerate(distances)]


def frame(*cells: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame([row for rows in cells for row in rows], columns=DISTANCES_HEADER.split(","))


def small(ft: float = 1.0, trained: float = 1.0) -> pd.DataFrame:
    """Return rows of an untrained net, I-CFM at Euler 1 and 100, and FT-FM at Euler 1, each spread by ± 0.01."""

    def around(level: float) -> tuple[float, ...]:
        return level - 0.01, level, level + 0.01

    return table1_rows(
        frame(
            cell("untrained", "euler", 100, around(20.0)),
            cell("i_cfm", "euler", 1, around(5.0)),
            cell("i_cfm", "euler", 100, around(trained)),
            cell("ft_fm", "euler", 1, around(ft), tuned=1),
        )
    )


def answer(table: pd.DataFrame, question: str, halves: Halves | None = HALVES) -> bool | None:
    (found,) = [check for check in checks(table, halves) if check.question.startswith(question)]
    return found.holds


def test_row_is_the_mean_over_sampling_seeds_with_students_t_interval() -> None:
    table = table1_rows(frame(cell("si", "euler", 100, (9.0, 10.0, 11.0))))
    assert ",".join(table.columns) == TABLE1_HEADER
    row = table.iloc[0]
    older = frame(cell("si", "euler", 100, (9.0, 10.0, 11.0))).drop(columns="precision")
    assert (row["precision"], table1_rows(older)["precision"].iloc[0]) == ("fp32", "")
    half = 4.302652729911275 / 3**0.5  # the 97.5 % quantile of Student's t with 2 degrees of freedom
    assert row["distance"] == 10.0
    assert (row["distance_low"], row["distance_high"]) == pytest.approx((10 - half, 10 + half), abs=1e-6)
    assert (row["sampling_seeds"], row["train_seeds"], row["n_samples"], row["finetuned_nfe"]) == (3, "7", 1500, 0)
    assert (row["paper_fid"], row["paper_nfe"], row["paper_comparable"]) == (4.488, 100, False)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9).filter(lambda values: max(values) - min(values) > 1e-3))
def test_t_interval_matches_scipy(values: list[float]) -> None:
    own = t_interval(values)
    expected = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
    assert (own.low, own.high) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_interval_is_cut_at_zero_and_absent_for_one_seed() -> None:
    table = table1_rows(frame(cell("si", "euler", 1, (0.1, 5.0, 9.9)), cell("si", "euler", 2, (3.0,))))
    assert table["distance_low"].iloc[0] == 0.0 < table["distance_high"].iloc[0]
    assert table["distance"].iloc[1] == 3.0
    assert table[["distance_low", "distance_high"]].iloc[1].isna().all()


def test_rows_are_sorted_by_method_then_nfe_with_adaptive_last() -> None:
    two = (1.0, 2.0)
    adaptive = frame(cell("i_cfm", "dopri5", 140.0, two))
    adaptive["nfe"] = [140.5, 142.5]  # the measured NFE differs between seeds
    fixed = frame(
        cell("ft_fm", "euler", 8, two, tuned=4),
        cell("i_cfm", "euler", 100, two),
        cell("i_cfm", "euler", 8, two),
        cell("ddpm", "ancestral", 100, two),
    )
    table = table1_rows(pd.concat([adaptive, fixed]))
    assert table["method"].tolist() == ["ddpm", "i_cfm", "i_cfm", "i_cfm", "ft_fm"]
    assert table["solver"].tolist() == ["ancestral", "euler", "euler", "dopri5", "euler"]
    assert table["nfe"].tolist() == [100, 8, 100, 141.5, 8]
    assert table["paper_fid"].fillna(0).tolist() == [0, 0, 4.461, 3.659, 0]
    assert table["paper_nfe"].fillna(0).tolist() == [0, 0, 100, 146.42, 0]


@pytest.mark.parametrize(
    ("change", "comparable"),
    [({}, True), ({"scale": "lab"}, False), ({"features": "embedded"}, False), ({"n_samples": 10_000}, False)],
)
def test_result_is_comparable_with_the_paper_only_in_the_same_setting(change: dict, comparable: bool) -> None:
    alike = {"scale": "paper", "features": "inception", "n_samples": 50_000} | change
    table = table1_rows(frame(cell("si", "euler", 100, (4.0, 4.1), **alike), cell("si", "euler", 8, (9.0,), **alike)))
    assert table["paper_comparable"].tolist() == [False, comparable]  # the paper has no number at NFE 8
    text = table1_markdown(table, None, expected={}, command="make repro")
    assert ("| 4.488 |" in text) == comparable and ("| 4.488 * |" in text) != comparable
    assert text.splitlines()[0].split(": ")[1].startswith("FD " if alike["features"] == "embedded" else "FID ")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (frame(cell("fm", "euler", 1, (1.0,))), "method: given fm, allowed: untrained"),
        (frame(cell("si", "heun", 1, (1.0,))), "solver: given heun, allowed: euler"),
        (frame(cell("si", "euler", 1, (1.0, math.nan))), "si, euler-1: a distance is not finite"),
        (frame(cell("si", "euler", 1, (1.0,)), cell("si", "euler", 1, (1.0,))), "sampling seed 0 stands there twice"),
        (
            frame(cell("si", "euler", 1, (1.0,)), cell("si", "euler", 2, (1.0,), scale="lab")),
            "scale: given starter, lab",
        ),
        (frame(cell("si", "euler", 1, (1.0,))).drop(columns="nfe"), "column nfe is missing"),
        (frame(), "has no rows"),
    ],
)
def test_invalid_distances_are_refused(wrong: pd.DataFrame, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        table1_rows(wrong)


def test_row_with_several_checkpoints_is_refused() -> None:
    mixed = frame(cell("si", "euler", 1, (1.0, 2.0)))
    mixed["checkpoint"] = ["a", "b"]
    with pytest.raises(UserError, match="si, euler-1: checkpoint: given a, b"):
        table1_rows(mixed)


def test_halves_must_be_of_the_same_data() -> None:
    rows = [("starter", "digits", seed, 750, "embedded", distance) for seed, distance in enumerate((1.0, 2.0, 3.0))]
    halves = pd.DataFrame(rows, columns=HALVES_HEADER.split(","))
    assert yardstick(halves, small()) == Halves(2.0, 1.0, 750, 3)
    assert yardstick(None, small()) is None and yardstick(halves.iloc[:0], small()) is None
    with pytest.raises(UserError, match="dataset: given cifar10, allowed: digits"):
        yardstick(halves.assign(dataset="cifar10"), small())


def test_column_shows_the_model_fine_tuned_for_its_nfe() -> None:
    worse_where_it_belongs = table1_rows(
        frame(
            *(cell("ft_fm", "euler", nfe, (float(tuned),), tuned=tuned) for nfe in (1, 100) for tuned in (1, 2, 4)),
            cell("ft_fm", "dopri5", 4.0, (9.0,), tuned=4),  # its NFE is 4 by chance
            cell("ft_fm", "dopri5", 30.0, (9.0,), tuned=8),
        )
    )
    cells = shown_cells(worse_where_it_belongs)
    shown = {solver: cells["ft_fm", solver]["finetuned_nfe"] for solver in ("euler-1", "euler-100", "dopri5")}
    assert shown == {"euler-1": 1, "euler-100": 4, "dopri5": 8}
    text = table1_markdown(worse_where_it_belongs, None, expected={}, command="make repro")
    assert "the model fine-tuned for NFE 1 under Euler 1; fine-tuned for NFE 4 under Euler 100; " in text


def test_checks_depend_on_the_distances() -> None:
    assert answer(small(trained=1.0), "I-CFM, Euler 100: at most a tenth") is True
    assert answer(small(trained=2.1), "I-CFM, Euler 100: at most a tenth") is False
    assert answer(small(trained=1.0), "I-CFM, Euler 100: at most five times") is True
    assert answer(small(trained=1.2), "I-CFM, Euler 100: at most five times") is False  # 5 × (0.2 + 0.02) = 1.1
    below, apart = "FT-FM (ours) below I-CFM, NFE 1", "Their intervals apart, NFE 1"
    assert (answer(small(ft=1.0), below), answer(small(ft=1.0), apart)) == (True, True)
    assert (answer(small(ft=4.99), below), answer(small(ft=4.99), apart)) == (True, False)
    assert (answer(small(ft=6.0), below), answer(small(ft=6.0), apart)) == (False, True)


def test_check_without_its_distances_is_unknown() -> None:
    table = small()
    assert answer(table, "FT-FM (ours) below I-CFM, NFE 2") is None
    assert answer(table, "FT-FM (ours), Euler 100: at most a tenth") is None
    assert answer(table, "I-CFM, Euler 100: at most five times", halves=None) is None
    assert answer(table[table["method"] != "untrained"], "I-CFM, Euler 100: at most a tenth") is None
    fewer = table.assign(n_samples=table["n_samples"].where(table["method"] != "ft_fm", 100))
    assert answer(fewer, "FT-FM (ours) below I-CFM, NFE 1") is None
    single = table.assign(distance_low=math.nan, distance_high=math.nan)
    assert answer(single, "FT-FM (ours) below I-CFM, NFE 1") is True
    assert answer(single, "Their intervals apart, NFE 1") is None


def test_markdown_shows_cells_reference_rows_and_missing_results() -> None:
    expected = {"si": ["euler-1", "dopri5"], "i_cfm": ["euler-1", "euler-2"], "ft_fm": ["euler-1"]}
    text = table1_markdown(small(), HALVES, expected=expected, command="make repro", note="Seven images are bad.")
    assert "1500 images for each number, 3 sampling seeds, training seed 7." in text
    assert "Seven images are bad." in text and "**The paper's FIDs are not comparable with the FD here.**" in text
    assert "Precision | Euler 1 | Euler 2 | Euler 100 | Adaptive (NFE) | Paper, Euler 100 |" in text
    floor = "| 0.2000 ± 0.02000 " * 4
    assert f"| Two halves of the real data | — | — {floor}| — | — | — |" in text
    assert "| Untrained net | 4000 | — | — | — | 20.00 [19.98, 20.02] | — | — | — | — |" in text
    ours = "| I-CFM | 4000 | fp32 | 5.000 [4.975, 5.025] | — | 1.000 [0.9752, 1.025] | — |"
    assert f"{ours} 4.461 * | 3.643 * | 3.659 (146.42) * |" in text
    assert "- SI: all solvers.\n- I-CFM: Euler 2.\n\n" in text
    assert "| FT-FM (ours) below I-CFM, NFE 1 | 1.000 - 5.000 = -4.000 | yes |" in text
    assert "Two halves of the real data.\n" in table1_markdown(small(), None, expected={}, command="make repro")


def test_complete_table_lists_nothing_as_missing() -> None:
    assert "Missing" not in table1_markdown(small(), HALVES, expected={"ft_fm": ["euler-1"]}, command="make repro")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.000"), (0.765996, "0.7660"), (4.46, "4.460"), (12345.6, "12346"), (-0.0123456, "-0.01235")],
)
def test_numbers_have_four_significant_digits(value: float, shown: str) -> None:
    assert digits(value) == shown


def test_quoted_fids_match_the_papers_table_1() -> None:
    mirror = os.environ.get("FLOWTUNE_MIRROR")
    source = Path(mirror).resolve().parent / "paper" / "table1.csv" if mirror else None
    if source is None or not source.exists():
        pytest.skip("the paper's tables are not beside FLOWTUNE_MIRROR")
    published = pd.read_csv(source).set_index("method").fillna(-1.0)
    ours = {IMAGE_METHODS[method].removesuffix(" (ours)"): numbers for method, numbers in PAPER.items()}
    quoted = pd.DataFrame.from_dict(ours, orient="index", columns=published.columns).fillna(-1.0)
    assert quoted.to_dict() == published.to_dict()
