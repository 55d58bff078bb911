"""The gap table, its report and its figure, from made-up measurements."""

import math
from pathlib import Path

from pipeline.evaluation.gap import Gap
from pipeline.reporting.gap import GAP_HEADER, gap_markdown, gap_panels, gap_table

ABOUT: dict[str, float | str] = {"trajectories": 8, "tolerance": 1e-5, "end": 0.95, "steps": 100, "seed": 3}


def gap(grid: str, nfe: int, error: float, product: float, *, vacuous: bool = False) -> Gap:
    uniform = 2 * product if grid == "uniform" else None
    return Gap("euler", grid, nfe, error, 0.1, 2.0, 0.5, math.inf, uniform, 4 * product, product, vacuous)


MEASURED = {
    "two_points sigma=0.3": [
        gap("uniform", 4, 0.1, 1.0),
        gap("uniform", 16, 0.05, 5.0, vacuous=True),
        gap("late", 4, 0.09, 2.0),
        gap("late", 16, 0.06, 3.0),
    ]
}


def test_table_has_columns_and_rounded_values() -> None:
    table = gap_table("lab", MEASURED)
    assert ",".join(table.columns) == GAP_HEADER
    assert table["bound_uniform"].isna().tolist() == [False, False, True, True]
    assert table["bound_variable"].eq(math.inf).all()
    assert table["vacuous"].tolist() == [False, True, False, False]
    assert gap_table("lab", {"x": [gap("late", 4, 0.123456789, 1.0)]})["error"].tolist() == [0.123457]


def test_markdown_compares_bounds_with_errors() -> None:
    text = gap_markdown(gap_table("lab", MEASURED), MEASURED, "gap.png", **ABOUT)
    assert "| two_points sigma=0.3 | euler | uniform | 4 | 0.1 | 0.1 | 2 | 0.5 | 1.0 | 1.3 | 1.6 | > 308 | no |" in text
    assert "| two_points sigma=0.3 | euler | late | 16 | 0.06 | 0.1 | 2 | 0.5 | 1.7 | — | 2.3 | > 308 | no |" in text
    assert "at or above the error in 4 of 4 solves" in text
    assert "above the error by a factor of 10 to 1e+02" in text
    assert "In 1 of 4 solves all bounds are vacuous" in text
    assert "The late grid ends nearer to the true flow than equal steps in 1 of 2 solves" in text
    assert "The early grid" not in text
    wrong = gap_table("lab", {"x": [gap("late", 4, 1.0, 0.5)]})
    assert "in 0 of 1 solves" in gap_markdown(wrong, {"x": [gap("late", 4, 1.0, 0.5)]}, "gap.png", **ABOUT)


def test_figure_is_deterministic(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        gap_panels(gap_table("lab", MEASURED), tmp_path / name / "gap.png")
    for kind in ("png", "svg"):
        assert (tmp_path / "one" / f"gap.{kind}").read_bytes() == (tmp_path / "other" / f"gap.{kind}").read_bytes()
