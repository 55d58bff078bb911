"""``python -m pipeline.settings`` prints settings with their lines in params.yaml."""

from pathlib import Path

import pytest

from pipeline.settings.__main__ import main
from tests.settings.params import TEXT, line_of, replaced


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of params.yaml in the current folder."""
    path = tmp_path / "params.yaml"
    path.write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.usefixtures("file")
def test_a_setting_is_printed_with_its_line_and_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["starter", "pusht", "pretrain.lr"]) == 0
    line = f"pretrain.lr: 0.0015   params.yaml:{line_of('lr: 1.5e-3')} starter.pusht.pretrain.lr\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("lab", "kitchen", "select"), "select.seeds: 20 "),
        (
            ("paper", "cifar10", "fid.solvers"),
            "fid.solvers: [euler-1, euler-2, euler-4, euler-8, euler-100, euler-1000",
        ),
        (("starter", "gap"), "train.steps: 1500 "),
        (("lab", "toys"), "follow.warmup: 20 "),
        (("paper", "pusht", "evaluation"), "evaluation.videos: true "),
        (("lab", "lift"), "finetune.nfe16.precision: auto "),
    ],
)
@pytest.mark.usefixtures("file")
def test_tasks_images_and_toys_are_printed(
    arguments: tuple[str, ...], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(arguments)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith(shown) for line in printed)
    assert all(line.startswith(f"{arguments[2]}") for line in printed if len(arguments) > 2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("huge", "pusht"), "error: scale: given 'huge', allowed: starter, lab, paper, metaworld\n"),
        (("starter", "kitchen"), "error: task: given 'kitchen', allowed at scale starter: pusht, digits, gap, toys\n"),
        (
            ("starter", "gap", "trains"),
            "error: key: given 'trains', allowed: datasets, sigmas, net, train, trajectories, nfe, tolerance, end, "
            "seed, threads of starter.gap, or one inside\n",
        ),
    ],
)
@pytest.mark.usefixtures("file")
def test_unknown_scale_task_or_key_gives_an_error(
    arguments: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(arguments)) == 2
    assert capsys.readouterr().err == line


def test_invalid_file_gives_an_error(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(replaced("lr: 1.5e-3", "lr: -1"), encoding="utf-8")
    assert main(["lab", "kitchen"]) == 2
    at = f"params.yaml:{line_of('lr: 1.5e-3')}: starter.pusht.pretrain.lr"
    assert capsys.readouterr().err == f"error: {at}: given -1, allowed: greater than 0\n"
