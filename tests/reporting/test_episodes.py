"""Validation of a row's episodes and metrics, with a one-line error for each kind of damage."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.reporting.episodes import EPISODES_HEADER, read_episodes, read_metrics
from pipeline.settings.paths import Entry
from pipeline.utils.errors import UserError

ENTRY = Entry("pusht_b", "ft_fm", 16)


def whole_episodes() -> pd.DataFrame:
    rows = [
        ("starter", "pusht_b", "ft_fm", 16, 0, "ft_fm-nfe16", "none", seed, repeat, 0.5, 0.75, 0, 300)
        for seed in (100000, 100001, 100002)
        for repeat in (0, 1)
    ]
    return pd.DataFrame(rows, columns=EPISODES_HEADER.split(","))


def write(reports: Path, episodes: pd.DataFrame) -> None:
    path = ENTRY.episodes(reports)
    path.parent.mkdir(parents=True, exist_ok=True)
    episodes.to_csv(path, index=False)


def test_complete_file_is_read_back(tmp_path: Path) -> None:
    write(tmp_path, whole_episodes())
    pd.testing.assert_frame_equal(read_episodes(tmp_path, ENTRY), whole_episodes())


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("evaluation", "pusht_a", "evaluation must be pusht_b"),
        ("method", "fm", "method must be ft_fm"),
        ("nfe", 1, "nfe must be 16"),
        ("scale", "lab", "several values of scale"),
        ("train_seed", 1, "several values of train_seed"),
        ("checkpoint", "other", "several values of checkpoint"),
        ("max", 1.5, r"must lie in \[0, 1\]"),
        ("max", "high", "max holds something that is not a number"),
        ("final", None, "empty field in final"),
        ("success", 0.5, "success must be 0 or 1"),
        ("repeat", 1, "seed 100000, repeat 1 stands there twice"),
        ("seed", 100003, "do not all have the same seeds"),
    ],
)
def test_invalid_field_is_reported(tmp_path: Path, column: str, value: object, complaint: str) -> None:
    episodes = whole_episodes().astype({column: object})
    episodes.loc[0, column] = value
    write(tmp_path, episodes)
    with pytest.raises(UserError, match=rf"pusht_b-ft_fm-nfe16\.csv: .*{complaint}") as caught:
        read_episodes(tmp_path, ENTRY)
    assert "\n" not in str(caught.value)


def test_perturbed_episodes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, whole_episodes().assign(perturbation="push"))
    with pytest.raises(UserError, match="perturbed"):
        read_episodes(tmp_path, ENTRY)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "not a readable CSV file"),
        (b"a,b\n1,2\n", "column scale is missing, expected scale,"),
        (EPISODES_HEADER.encode() + b"\n", "has no rows"),
        (b"\xff\xfe\x00", "not a readable CSV file"),
        (b"a\n1\n2,3,4\n", "not a readable CSV file"),
    ],
)
def test_invalid_csv_files_are_refused(tmp_path: Path, text: bytes, complaint: str) -> None:
    write(tmp_path, whole_episodes())
    ENTRY.episodes(tmp_path).write_bytes(text)
    with pytest.raises(UserError, match=complaint) as caught:
        read_episodes(tmp_path, ENTRY)
    assert "\n" not in str(caught.value)


METRICS: dict[str, object] = {
    "scale": "starter",
    "evaluation": "pusht_b",
    "method": "ft_fm",
    "nfe": 16,
    "dataset": "pusht_starter",
    "train_steps": 4000,
    "train_seed": 0,
    "n_seeds": 3,
    "repeats": 2,
    "spread_ratio": 0.9,
}


def test_metrics_that_match_the_episodes_are_accepted(tmp_path: Path) -> None:
    path = ENTRY.metrics(tmp_path)
    path.parent.mkdir()
    path.write_text(json.dumps(METRICS), encoding="utf-8")
    assert read_metrics(tmp_path, ENTRY, whole_episodes()) == METRICS


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (json.dumps(METRICS | {"n_seeds": 500}), "n_seeds is 500, but the episodes say 3"),
        (json.dumps(METRICS | {"nfe": 1}), "nfe is 1, but the episodes say 16"),
        (json.dumps({k: v for k, v in METRICS.items() if k != "dataset"}), "dataset is missing"),
        ("{", "not a readable JSON file"),
        ("[]", "no JSON object"),
    ],
)
def test_metrics_that_contradict_the_episodes_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = ENTRY.metrics(tmp_path)
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"pusht_b-ft_fm-nfe16\.json: .*{complaint}"):
        read_metrics(tmp_path, ENTRY, whole_episodes())
