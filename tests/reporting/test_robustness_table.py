"""The robustness table: scores under disturbances, paired by seed."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.reporting.episodes import EPISODES_HEADER
from pipeline.reporting.robustness import disturbed_results, robustness_markdown, robustness_table
from pipeline.settings.paths import Entry, ScaleReports
from pipeline.utils.errors import UserError

FM, RES = Entry("pusht_b", "fm", 16), Entry("pusht_b", "resft_fm", 16)
SCORES = {
    (FM, "none"): [0.9, 0.8, 0.7, 0.6],
    (FM, "action_noise=0.1"): [0.5, 0.4, 0.3],
    (RES, "none"): [0.8, 0.8, 0.8, 0.8],
    (RES, "action_noise=0.1"): [0.7, 0.7, 0.7],
}


def episodes(entry: Entry, perturbation: str, checkpoint: str = "model@1") -> pd.DataFrame:
    scores = SCORES[entry, perturbation]
    rows = [
        ["starter", entry.evaluation, entry.method, entry.nfe, 0, checkpoint, perturbation, 100_000 + i, 0, s, s, 0, 9]
        for i, s in enumerate(scores)
    ]
    return pd.DataFrame(rows, columns=EPISODES_HEADER.split(","))


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScaleReports:
    monkeypatch.chdir(tmp_path)
    found = ScaleReports("starter")
    for entry in (FM, RES):
        for path in (entry.episodes(found.folder), entry.metrics(found.folder), found.disturbed_episodes(entry)):
            path.parent.mkdir(parents=True, exist_ok=True)
        episodes(entry, "none").to_csv(entry.episodes(found.folder), index=False)
        episodes(entry, "action_noise=0.1").to_csv(found.disturbed_episodes(entry), index=False)
        about = {"scale": "starter", "evaluation": entry.evaluation, "method": entry.method, "nfe": entry.nfe}
        about |= {"train_seed": 0, "n_seeds": 4, "repeats": 1, "dataset": "d", "train_steps": 5, "spread_ratio": 1.0}
        about |= {"precision": "bf16"} if entry == RES else {}
        entry.metrics(found.folder).write_text(json.dumps(about), encoding="utf-8")
    return found


def test_losses_and_differences_are_paired_on_the_disturbed_seeds(reports: ScaleReports) -> None:
    table = robustness_table(disturbed_results(reports, [FM, RES]), FM, {FM: "fp32", RES: "auto"})
    assert table["precision"].tolist() == ["fp32", "bf16"] * 2
    rows = {(row["method"], row["perturbation"]): row for _, row in table.iterrows()}
    assert list(rows) == [(m, p) for p in ("none", "action_noise") for m in ("fm", "resft_fm")]
    assert rows["fm", "none"]["max_score"] == pytest.approx(0.8)  # the fourth seed was not disturbed
    assert rows["fm", "action_noise"]["lost"] == pytest.approx(0.4)
    assert rows["resft_fm", "action_noise"]["lost"] == pytest.approx(0.1)
    assert rows["resft_fm", "action_noise"]["diff_vs_fm"] == pytest.approx(0.3)
    assert rows["resft_fm", "none"]["diff_vs_fm"] == pytest.approx(0.0, abs=1e-12)
    assert rows["fm", "action_noise"]["lost_low"] == pytest.approx(0.4)  # the same for every seed
    assert pd.isna(rows["fm", "action_noise"]["diff_vs_fm"]) and pd.isna(rows["fm", "none"]["lost"])
    text = robustness_markdown(table, "fm-nfe16", [])
    assert "| action noise 0.1 | ResFT-FM (ControlSynth) | 16 | 0.700 [0.700, 0.700] |" in text
    assert "difference in max score to FM continued at NFE 16" in text and "Missing" not in text


def test_disturbed_episodes_of_another_model_are_skipped_and_reported(reports: ScaleReports) -> None:
    episodes(RES, "action_noise=0.1", "model@2").to_csv(reports.disturbed_episodes(RES), index=False)
    found = disturbed_results(reports, [FM, RES])
    assert list(found) == [FM]
    text = robustness_markdown(robustness_table(found, FM), "fm-nfe16", [RES], {"pusht_b": "Push-T (b)"})
    assert "- Push-T (b), ResFT-FM (ControlSynth), NFE 16: its disturbed episodes are not there, or of another" in text


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda table: table.drop(columns="seed"), r"column seed is missing, expected scale,"),
        (lambda table: pd.concat([table, table]), r"holds an episode twice"),
        (lambda table: table.assign(method="fm"), r"of another model"),
    ],
)
def test_damaged_file_is_refused(reports: ScaleReports, damage, line: str) -> None:  # type: ignore[no-untyped-def]
    damage(episodes(RES, "action_noise=0.1")).to_csv(reports.disturbed_episodes(RES), index=False)
    with pytest.raises(UserError, match=rf"pusht_b-resft_fm-nfe16\.csv: .*{line}"):
        disturbed_results(reports, [RES])


def test_a_seed_without_an_undisturbed_episode_is_refused(reports: ScaleReports) -> None:
    alone = episodes(FM, "none")
    path = FM.metrics(reports.folder)
    path.write_text(path.read_text(encoding="utf-8").replace('"n_seeds": 4', '"n_seeds": 2'), encoding="utf-8")
    alone[:2].to_csv(FM.episodes(reports.folder), index=False)
    with pytest.raises(UserError, match=r"pusht_b-fm-nfe16\.csv: lacks seed 100002 of "):
        disturbed_results(reports, [FM])
