"""Comparison of two files of episodes, paired by seed."""

from pathlib import Path

import pytest

from pipeline.reporting.episodes import EPISODES_HEADER
from pipeline.utils.errors import UserError
from stages.compare_episodes import compared


def write(path: Path, scores: dict[int, list[float]], evaluation: str = "pusht_a") -> Path:
    rows = [
        f"lab,{evaluation},fm,1,0,fm@0,none,{seed},{repeat},{score},{score},{int(score == 1)},300"
        for seed, of_seed in scores.items()
        for repeat, score in enumerate(of_seed)
    ]
    path.write_text("\n".join([EPISODES_HEADER, *rows, ""]), encoding="utf-8")
    return path


def test_differences_are_paired_on_common_seeds(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", {1: [0.5, 0.7], 2: [1.0], 3: [0.0]})
    second = write(tmp_path / "b.csv", {2: [0.8], 1: [0.4], 9: [0.9]})
    score, success = compared(first, second)
    assert (score.seeds, score.first, score.second) == (2, pytest.approx(0.8), pytest.approx(0.6))
    assert score.difference.mean == pytest.approx(0.2) and score.difference.low == pytest.approx(0.2)
    assert (success.first, success.second, success.difference.mean) == (0.5, 0.0, 0.5)
    assert str(score).startswith("pusht_a: max score 0.800 and 0.600, difference +0.200 [+0.200, +0.200], 2 seeds")


def test_incomparable_files_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", {1: [0.5]})
    with pytest.raises(UserError, match="share no seed of any evaluation"):
        list(compared(one, write(tmp_path / "b.csv", {1: [0.5]}, "kitchen")))
    (tmp_path / "c.csv").write_text("seed,max\n1,0.5\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"c\.csv: column scale is missing, expected scale,"):
        list(compared(one, tmp_path / "c.csv"))
