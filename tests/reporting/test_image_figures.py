"""Figures 2a and E.2: the plotted content, and deterministic files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pipeline.evaluation.image_grid import tile
from pipeline.reporting.image_figures import IMAGE_HISTORY_HEADER, figure_2a, figure_e2
from pipeline.utils.errors import UserError


def images(count: int, channels: int, side: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def history(tuned: tuple[int, ...] = (1,), low: float = 0.9) -> pd.DataFrame:
    """Return I-CFM at NFE 1 and 8 with 1000 to 4000 updates, and fine-tuning from 2000 on at NFEs ``tuned``."""

    def row(method: str, nfe: int, updates: int, distance: float, selected: bool) -> tuple:
        interval = (distance, low * distance, 1.1 * distance)
        return ("starter", "digits", method, nfe, 0, updates, updates, *interval, "embedded", 1500, 3, selected)

    rows = [row("i_cfm", nfe, k * 1000, 40.0 / k, k == 2) for nfe in (1, 8) for k in (1, 2, 3, 4)]
    rows += [row("ft_fm", nfe, 2000 + k * 500, 10.0 / k, False) for nfe in tuned for k in (1, 2)]
    return pd.DataFrame(rows, columns=IMAGE_HISTORY_HEADER.split(","))


def curves(figure: Figure, panel: int) -> dict[str, list[tuple[float, float]]]:
    lines = figure.axes[panel].lines
    return {str(line.get_label()): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in lines}


def test_fine_tuning_branch_starts_at_the_selected_checkpoint(drawn: list[Figure], tmp_path: Path) -> None:
    figure_2a(history(), tmp_path / "figure_2a")
    left, right = curves(drawn[0], 0), curves(drawn[0], 1)
    assert left["I-CFM"] == [(1000, 40.0), (2000, 20.0), (3000, 40 / 3), (4000, 10.0)]
    assert left["FT-FM"] == [(2000, 20.0), (2500, 10.0), (3000, 5.0)]
    assert left["fine-tuned from here"] == [(2000, 20.0)]
    assert "FT-FM" not in right
    assert [panel.get_title() for panel in drawn[0].axes] == ["NFE 1", "NFE 8, not fine-tuned for"]


def test_measured_start_of_the_branch_is_not_drawn_twice(drawn: list[Figure], tmp_path: Path) -> None:
    measured = history()
    start = measured[measured["method"] == "ft_fm"].iloc[:1].assign(updates=2000, distance=21.0)
    figure_2a(pd.concat([measured, start]), tmp_path / "figure_2a")
    assert curves(drawn[0], 0)["FT-FM"] == [(2000, 21.0), (2500, 10.0), (3000, 5.0)]


def test_figure_2a_has_title_and_axis_labels(drawn: list[Figure], tmp_path: Path) -> None:
    figure_2a(history(), tmp_path / "figure_2a")
    title = drawn[0].get_suptitle()
    assert "scale starter, data set digits, training seed 0" in title and "1500 images, 3 sampling seeds" in title
    panel = drawn[0].axes[0]
    assert (panel.get_yscale(), panel.get_ylabel()) == ("log", "FD (embedded features)")
    assert panel.get_xlabel() == "Compute (flow-matching updates)"


def test_many_nfes_fill_several_rows_without_empty_panels(drawn: list[Figure], tmp_path: Path) -> None:
    many = pd.concat([history((1,)).assign(nfe=nfe).drop_duplicates(["method", "updates"]) for nfe in (1, 2, 4, 8, 16)])
    figure_2a(many, tmp_path / "figure_2a")
    assert [panel.get_title() for panel in drawn[0].axes] == [f"NFE {nfe}" for nfe in (1, 2, 4, 8, 16)]
    labelled = [bool(panel.get_xlabel()) for panel in drawn[0].axes]
    assert labelled == [False, True, True, True, True]


def test_interval_that_reaches_zero_is_cut_on_the_log_axis(drawn: list[Figure], tmp_path: Path) -> None:
    figure_2a(history(low=0.0), tmp_path / "figure_2a")
    bands = [band.get_paths()[0].vertices[:, 1].min() for band in drawn[0].axes[0].collections]
    assert bands == [10.0, 5.0]


def test_incomplete_histories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="column updates is missing"):
        figure_2a(history().drop(columns="updates"), tmp_path / "f")
    with pytest.raises(UserError, match="method i_cfm is missing at NFE 2"):
        figure_2a(history((1, 2)), tmp_path / "f")
    with pytest.raises(UserError, match="NFE 1: given 0 selected checkpoints, allowed: 1"):
        figure_2a(history().assign(selected=False), tmp_path / "f")
    with pytest.raises(UserError, match="train_seed: given 0, 1"):
        figure_2a(pd.concat([history(), history().assign(train_seed=1)]), tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_figures_are_deterministic(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        figure_2a(history(), tmp_path / folder / "figure_2a")
        for name, channels in (("grey", 1), ("rgb", 3)):
            rows = {"i_cfm": images(4, channels, 8), "my model": images(4, channels, 8)}
            figure_e2(rows, tmp_path / folder / f"figure_e2_{name}")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == [
        f"{name}.{kind}" for name in ("figure_2a", "figure_e2_grey", "figure_e2_rgb") for kind in ("png", "svg")
    ]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_figure_e2_labels_rows_and_shows_their_images(drawn: list[Figure], tmp_path: Path) -> None:
    base, tuned = images(3, 3, 32), images(3, 3, 32) // 2
    figure_e2({"i_cfm": base, "ft_fm": tuned, "my model": base}, tmp_path / "figure_e2")
    assert [panel.get_ylabel() for panel in drawn[0].axes] == ["I-CFM", "FT-FM (ours)", "my model"]
    shown = [panel.get_images()[0] for panel in drawn[0].axes]
    assert np.array_equal(shown[1].get_array(), tile(tuned, 3))
    assert {image.get_interpolation() for image in shown} == {"nearest"}
    with pytest.raises(ValueError, match="one shape"):
        figure_e2({"i_cfm": base, "ft_fm": tuned[:2]}, tmp_path / "figure_e2")
    with pytest.raises(ValueError, match="one shape"):
        figure_e2({}, tmp_path / "figure_e2")
