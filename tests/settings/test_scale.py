"""Switching the scale changes only the scale and the lists at the top of params.yaml."""

from pathlib import Path

import pytest

from pipeline.settings import schema
from pipeline.settings.layers import LISTS
from pipeline.settings.scale import main, set_scale
from pipeline.utils.errors import UserError
from tests.settings.params import TEXT, replaced


def test_switching_scale_changes_only_its_lists_and_switching_back_restores_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = replaced("images: [cifar10], nfe: [1, 16]", "images: [cifar10], nfe: [16]")
    path.write_text(text, encoding="utf-8")
    set_scale(path, "lab")
    lines = zip(text.splitlines(), path.read_text(encoding="utf-8").splitlines(), strict=True)
    changed = [(old, new) for old, new in lines if old != new]
    assert [old.split(":")[0] for old, _ in changed] == [
        *("scale", "tasks", "offline", "nfe", "residual", "robustness", "images", "theory")
    ]
    assert [old.split("#")[1] for old, _ in changed] == [new.split("#")[1] for _, new in changed]
    loaded = schema.load(path)
    assert loaded.scale == "lab" and all(getattr(loaded, key) == getattr(loaded.lab, key) for key in LISTS)
    set_scale(path, "starter")
    again = path.read_text(encoding="utf-8")
    assert [line.split() for line in again.splitlines()] == [line.split() for line in text.splitlines()]
    set_scale(path, "lab")
    set_scale(path, "starter")
    assert path.read_text(encoding="utf-8") == again


def test_switching_scale_replaces_invalid_lists(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(replaced("images: [digits]", "images: [cifar10]"), encoding="utf-8")
    set_scale(path, "lab")
    assert schema.load(path).images == ["cifar10"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "params.yaml: holds no keys; allowed: a mapping with scale, tasks, "),
        (
            replaced("{tasks: [pusht, pusht_image, kitchen, lift", "{task: [pusht, pusht_image, kitchen, lift"),
            ": lab.lists.task: unknown key; did you mean tasks? allowed: tasks, nfe, residual, ",
        ),
        (replaced(", theory: [lab]}", "}"), "lab.theory: missing"),
        (replaced("\nlab:", "\nlap:"), ": lap: unknown key; did you mean lab? allowed: "),
    ],
)
def test_invalid_file_is_left_alone(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        set_scale(path, "lab")
    assert line in str(raised.value) and str(raised.value).startswith("params.yaml:")
    assert path.read_text(encoding="utf-8") == text


def test_unknown_scale_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["huge"]) == 2
    assert (
        capsys.readouterr().err == "error: params.yaml: scale: given 'huge', allowed: starter, lab, paper, metaworld\n"
    )
