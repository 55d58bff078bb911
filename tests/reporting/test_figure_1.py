"""Figure 1, its table and its text, from made-up numbers."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.figure_1 import Figure1
from pipeline.evaluation.toy_flows import Detours, Steepness
from pipeline.evaluation.toy_systems import Disturbed, Region, Settled
from pipeline.reporting.figure_1 import FIGURE_1_HEADER, draw_figure_1, figure_1_markdown, figure_1_table

TIMES = np.linspace(0, 1, 5)


def disturbed(status: str, bound: float | None) -> Disturbed:
    deviation = np.linspace(0, 0.4, 5)[:, None] * np.ones((5, 16))
    limits = None if bound is None else np.full(5, bound)
    return Disturbed(TIMES, np.zeros((5, 16, 2)), np.zeros((5, 2)), deviation, 0.01, status, 1.0, limits)


def region(share: float) -> Region:
    return Region(np.array([1.0, 0.5]), share, np.eye(5, 2), share, 0.5, 1.5, 2 * share)


def shown(regions: list[Region]) -> Figure1:
    grid = np.stack(np.meshgrid(np.linspace(-2, 2, 9), np.linspace(-2, 2, 9)), axis=-1)
    detours = Detours(np.zeros((9, 3, 2)), np.zeros((4, 2)), 2.5, 0.4, 0.9, 0.02)
    flat = np.ones(5)
    return Figure1(
        steepness=Steepness(TIMES, TIMES, np.eye(5), TIMES, np.eye(5), 80 * flat, 2700 * flat, 0.1, 1.9),
        points=np.eye(2),
        exact=detours,
        detours={"mle0-independent": detours},
        demonstrated=np.zeros((3, 2)),
        force=0.3,
        contracting=disturbed("certified", 0.5),
        free={"follow-free0": disturbed("refuted", None), "follow-free1": disturbed("certified", 9.0)},
        settled=Settled(np.eye(2), np.array([1.0, 0.0]), regions, grid, -grid, np.zeros((9, 9))),
    )


@pytest.mark.parametrize("regions", [[], [region(0.1), region(0.5)]])
def test_figure_is_deterministic_with_and_without_regions(regions: list[Region], tmp_path: Path) -> None:
    for folder in ("first", "second"):
        draw_figure_1(shown(regions), tmp_path / folder / "figure_1.png")
    for name in ("figure_1.png", "figure_1.svg"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def words(regions: list[Region]) -> str:
    about = {"scale": "starter", "seed": 0, "sigma": 0.05, "nfe": 8, "candidates": 16}
    return " ".join(figure_1_markdown(shown(regions), "figure_1.png", **about).split())  # type: ignore[arg-type]


def test_text_states_the_measured_numbers() -> None:
    text = words([region(0.1)])
    assert "largest slope in x is 80" in text and "reaches 2700" in text
    assert "| mle0-independent | 2.50 | 0.40 | 0.90 | 0.02 |" in text
    assert "moved by at most 0.40, and certified to be moved by no more than 0.50" in text
    assert "1 of 2 are refuted" in text
    assert "| (1.00, 0.50) | 0.10 | 0.20 | 1.50 | 0.50 |" in text
    assert "No region could be certified" in words([])


def test_table_has_all_panels_and_bounds() -> None:
    table = figure_1_table(shown([region(0.1)]), "starter")
    assert ",".join(table.columns) == FIGURE_1_HEADER
    assert set(table["panel"]) == set("abcd")
    bounds = table[table["quantity"] == "bound"].set_index("model")["value"]
    assert bounds["follow-contracting"] == 0.5 and np.isnan(bounds["follow-free0"])
