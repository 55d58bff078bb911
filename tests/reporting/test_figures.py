"""Figure 2b and scores over NFE: deterministic files, and the plotted content."""

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from pipeline.reporting.figure_2b import HISTORY_HEADER, figure_2b, score_vs_nfe
from pipeline.reporting.table2 import TABLE2_HEADER
from pipeline.utils.errors import UserError


def history(fm_epochs: float = 20.0) -> pd.DataFrame:
    rows = []
    for nfe in (1, 16):
        for method, epochs in (("fm", fm_epochs), ("ft_fm", 10.0)):
            for point in range(3):
                done = point / 2
                key = ("starter", "pusht", "pusht_starter", method, nfe, 0, 100 * point, epochs * done)
                rows.append((*key, 0.5, 0.4, 0.6, 0.1, 0.05, 0.2, 50, 0.3, 1 - done / 2, 0.1, 0.2))
    return pd.DataFrame(rows, columns=HISTORY_HEADER.split(","))


def table() -> pd.DataFrame:
    rows = pd.DataFrame(
        [
            {"evaluation": evaluation, "method": method, "nfe": nfe, "scale": "starter", "dataset": "pusht_starter"}
            for evaluation in ("pusht_a", "pusht_b")
            for nfe in (1, 16)
            for method in ("fm", "ft_fm")
        ]
    )
    scores = {"max_score": 0.5, "max_score_low": 0.45, "max_score_high": 0.55}
    rates = {"success": 0.1, "success_low": 0.05, "success_high": 0.2}
    return rows.assign(train_seeds="0", n_seeds=500, **scores, **rates).reindex(columns=TABLE2_HEADER.split(","))


def test_png_and_svg_are_deterministic(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        figure_2b(history(), tmp_path / folder / "figure_2b")
        score_vs_nfe(table(), tmp_path / folder / "score_vs_nfe")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["figure_2b.png", "figure_2b.svg", "score_vs_nfe.png", "score_vs_nfe.svg"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert (tmp_path / "first" / "figure_2b.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "first" / "figure_2b.svg").read_text(encoding="utf-8")


def test_figure_2b_states_its_seeds_and_plots_branches_at_equal_compute(drawn: list[Figure], tmp_path: Path) -> None:
    figure_2b(history(fm_epochs=160.0), tmp_path / "figure_2b")
    title = drawn[0].get_suptitle()
    assert "50 validation seeds" in title and "scale starter" in title and "pusht_starter" in title
    score, _, success, _, spread, _ = drawn[0].axes
    assert [list(line.get_xdata()) for line in score.lines] == [[0.0, 5.0, 10.0]] * 2
    assert [len(panel.collections) for panel in (score, success, spread)] == [2, 2, 0]
    assert "16 of FM continued" in spread.get_xlabel()
    assert spread.get_ylim()[0] == 0


def test_equal_epochs_give_a_plain_axis_label(drawn: list[Figure], tmp_path: Path) -> None:
    figure_2b(history(fm_epochs=10.0), tmp_path / "figure_2b")
    assert drawn[0].axes[4].get_xlabel() == "Fine-tuning epoch"


def test_score_vs_nfe_has_a_column_per_evaluation_and_a_log2_axis(drawn: list[Figure], tmp_path: Path) -> None:
    score_vs_nfe(table(), tmp_path / "score_vs_nfe", {f"pusht_{which}": f"Push-T ({which})" for which in "ab"})
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels[:2]] == ["Push-T (a)", "Push-T (b)"]
    assert all(panel.get_xscale() == "log" and list(panel.get_xticks()) == [1, 16] for panel in panels)
    assert "500 test seeds" in drawn[0].get_suptitle()
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["FM continued", "FT-FM"]


def test_many_evaluations_are_split_into_rows(drawn: list[Figure], tmp_path: Path) -> None:
    many = [table().query("evaluation == 'pusht_a'").assign(evaluation=f"task {i}") for i in range(7)]
    score_vs_nfe(pd.concat(many), tmp_path / "score_vs_nfe")
    titled = [panel for panel in drawn[0].axes if panel.get_title()]
    assert [panel.get_title() for panel in titled] == [f"task {i}" for i in range(7)]
    assert len(drawn[0].axes) == 14
    assert len({round(panel.get_position().y0, 3) for panel in titled}) == 2


def test_baselines_without_nfe_are_horizontal_lines(drawn: list[Figure], tmp_path: Path) -> None:
    rows = table()
    baseline = rows[rows["nfe"] == 16].query("method == 'fm'").assign(method="random", nfe=0, max_score=0.125)
    score_vs_nfe(pd.concat([rows, baseline]), tmp_path / "score_vs_nfe")
    panel = drawn[0].axes[0]
    assert list(panel.get_xticks()) == [1, 16]
    assert [list(line.get_ydata()) for line in panel.lines if line.get_label() == "Random actions"] == [[0.125, 0.125]]


def test_a_method_absent_from_one_evaluation_is_still_in_the_legend(drawn: list[Figure], tmp_path: Path) -> None:
    rows = table()
    score_vs_nfe(rows[(rows["evaluation"] == "pusht_b") | (rows["method"] == "fm")], tmp_path / "score_vs_nfe")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["FM continued", "FT-FM"]


def test_incomplete_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="column epoch is missing"):
        figure_2b(history().drop(columns="epoch"), tmp_path / "f")
    with pytest.raises(UserError, match="method ft_fm is missing at NFE 16"):
        figure_2b(history().query("method == 'fm' or nfe == 1"), tmp_path / "f")
    with pytest.raises(UserError, match="train_seed: given 0, 1, allowed: one for all"):
        figure_2b(pd.concat([history(), history().assign(train_seed=1)]), tmp_path / "f")
    with pytest.raises(UserError, match="table2: has no rows"):
        score_vs_nfe(table().iloc[:0], tmp_path / "f")
    assert not list(tmp_path.iterdir())
