"""The table of an offline task, from episodes with known scores."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipeline.evaluation.offline_scores import SCORES, EpisodeScores
from pipeline.reporting.offline import OFFLINE_HEADER, offline_markdown, offline_table, offline_vs_nfe
from pipeline.reporting.offline_rows import OFFLINE_COLUMNS
from pipeline.reporting.tables import missing_rows
from pipeline.settings.paths import Entry, ScaleReports
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError

FM, FT = Entry("arm", "fm", 2, within="arm"), Entry("arm", "ft_fm", 2, within="arm")
NEAREST = Entry("arm", "nearest_demo", 0, within="arm")
EPISODES = (3, 8, 11)


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScaleReports:
    monkeypatch.chdir(tmp_path)
    return ScaleReports("lab")


def write_row(reports: ScaleReports, entry: Entry, gain: float, episodes: tuple[int, ...] = EPISODES) -> None:
    """Write episodes whose scores are a tenth of their number minus ``gain``; a disturbance adds one."""

    def table(perturbation: str, more: float) -> str:
        about = {"scale": "lab", "evaluation": "arm", "method": entry.method, "nfe": entry.nfe, "train_seed": 7}
        about |= {"checkpoint": entry.stem, "perturbation": perturbation}
        rows = [about | vars(scores(episode, episode / 10 - gain + more)) | {"repeats": 16} for episode in episodes]
        return pd.DataFrame(rows)[list(OFFLINE_COLUMNS)].to_csv(index=False, lineterminator="\n")

    write_text(entry.episodes(reports.folder), table("none", 0.0))
    if entry != NEAREST:
        write_text(reports.disturbed_episodes(entry), table("observation_noise=0.1", 1.0))
    metrics = {"dataset": "arm_data", "train_steps": 40, "spread_ratio": 0.5, "ms_per_plan": 2.0, "precision": "fp32"}
    write_text(entry.metrics(reports.folder), pd.Series({"arm": metrics}).to_json())


def scores(episode: int, value: float) -> EpisodeScores:
    return EpisodeScores(episode, 10, *[value] * len(SCORES))


def test_rows_are_means_over_episodes_and_their_differences_to_fm(reports: ScaleReports) -> None:
    for entry, gain in ((FM, 0.0), (FT, 0.25), (NEAREST, -0.5)):
        write_row(reports, entry, gain)
    table = offline_table(reports, [NEAREST, FM, FT, replace(FT, nfe=4)])
    assert tuple(table.columns) == OFFLINE_HEADER
    order = list(zip(table["method"], table["perturbation"], strict=True))
    noise = "observation_noise=0.1"
    assert order == [("nearest_demo", "none"), ("fm", "none"), ("ft_fm", "none"), ("fm", noise), ("ft_fm", noise)]
    plain = table.set_index(["method", "perturbation"])
    mean = sum(EPISODES) / 30
    assert plain.loc[("ft_fm", "none"), "error"] == pytest.approx(mean - 0.25, abs=1e-6)
    assert plain.loc[("ft_fm", noise), "crps"] == pytest.approx(mean + 0.75, abs=1e-6)
    for perturbation in ("none", noise):
        of_row = plain.loc[("ft_fm", perturbation)]
        assert of_row[["nll_diff_vs_fm", "nll_diff_low", "nll_diff_high"]].tolist() == pytest.approx([-0.25] * 3)
    assert plain.loc[("nearest_demo", "none"), "error_diff_vs_fm"] == pytest.approx(0.5)  # to FM at the largest NFE
    assert plain["error_diff_vs_fm"].isna().tolist() == [False, True, False, True, False]
    assert (table["n_episodes"] == 3).all() and (table["n_windows"] == 30).all()


def test_markdown_lists_missing_rows(reports: ScaleReports) -> None:
    write_row(reports, FM, 0.0)
    table = offline_table(reports, [FM, FT])
    text = offline_markdown(table, missing_rows(reports.folder, [FM, FT]), scale="lab", title="Arm")
    assert "# Arm, scale `lab`" in text and "- FT-FM, NFE 2: `episodes/arm-ft_fm-nfe2.csv` was not made" in text
    assert text.count("| FM continued | 2 |") == 2


def test_rows_with_other_episodes_or_columns_are_refused(reports: ScaleReports) -> None:
    write_row(reports, FM, 0.0)
    write_row(reports, FT, 0.0, episodes=(3, 8, 12))
    with pytest.raises(UserError, match=r"^arm-ft_fm-nfe2: has other episodes than arm-fm-nfe2; evaluate both again$"):
        offline_table(reports, [FM, FT])
    write_text(FT.episodes(reports.folder), "seed,max\n1,0.5\n")
    with pytest.raises(UserError, match=r"arm-ft_fm-nfe2.csv: column scale is missing, expected scale,"):
        offline_table(reports, [FM, FT])


def test_figure_needs_a_trained_model(reports: ScaleReports, tmp_path: Path) -> None:
    write_row(reports, NEAREST, 0.0)
    with pytest.raises(UserError, match=r"no row of a trained model"):
        offline_vs_nfe(offline_table(reports, [NEAREST]), tmp_path / "arm.png", "Arm")
    write_row(reports, FM, 0.0)
    offline_vs_nfe(offline_table(reports, [NEAREST, FM]), tmp_path / "arm.png", "Arm")
    assert (tmp_path / "arm.svg").exists()
