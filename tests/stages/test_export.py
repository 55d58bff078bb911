"""``stages.export`` writes a checkpoint as ONNX."""

import sys
from pathlib import Path

import pytest

from pipeline.orchestration.stage import program
from stages.export import main
from tests.deployment.test_controller import SHIPPED


def export(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, out: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["export", "--checkpoint", str(checkpoint), "--nfe", "2", "--out", str(out)])
    program(main)


def test_export_prints_input_and_output_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="`make env-export` installs it")
    out = tmp_path / "new" / "policy.onnx"
    export(monkeypatch, SHIPPED / "fm-nfe1.safetensors", out)
    assert out.stat().st_size > 1e6
    shown = 'NFE 2: {"observation": [1, 1, 5], "noise": [1, 16, 2]} → {"action": [1, 16, 2]} → '
    assert shown in capsys.readouterr().out


def test_missing_onnx_packages_give_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.deployment.onnx_export.find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        export(monkeypatch, SHIPPED / "fm-nfe1.safetensors", tmp_path / "policy.onnx")
    assert capsys.readouterr().err == "error: not installed: onnx, onnxscript; run `make env-export`\n"
    assert list(tmp_path.iterdir()) == []
