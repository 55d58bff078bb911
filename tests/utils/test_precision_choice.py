"""Precision 'auto' is resolved by the device and kept for the whole run."""

import platform
from pathlib import Path

import pytest
import torch

from pipeline.settings.blocks import Optimization
from pipeline.settings.schema import load
from pipeline.utils import precision
from pipeline.utils.precision import autocast, begun_with, native

CPUS = {  # oneDNN's check, AVX512-BF16, AMX, processor, expected
    "AVX2": (False, False, False, "x86_64", "fp32"),
    "AVX512 without bf16": (True, False, False, "x86_64", "fp32"),
    "AVX512-BF16": (True, True, False, "x86_64", "bf16"),
    "AMX": (True, False, True, "AMD64", "bf16"),
    "AMX that oneDNN was told not to use": (False, True, True, "x86_64", "fp32"),
    "ARM with bf16": (True, False, False, "aarch64", "bf16"),
    "ARM without": (False, False, False, "arm64", "fp32"),
}


def be(monkeypatch: pytest.MonkeyPatch, onednn: bool, avx512: bool, amx: bool, machine: str) -> None:
    """Fake PyTorch's checks of the processor."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(platform, "machine", lambda: machine)


@pytest.mark.parametrize("cpu", CPUS)
def test_auto_on_a_cpu_follows_its_instructions(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *checks, expected = CPUS[cpu]
    be(monkeypatch, *checks)  # type: ignore[arg-type]
    assert native("cpu") == expected


def test_auto_on_cuda_and_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **_: has)
        assert native("cuda") == ("bf16" if has else "fp32")
    assert native("mps") == "fp32"


def test_resumed_run_keeps_its_precision(tmp_path: Path) -> None:
    kept = tmp_path / "resume" / "precision"
    assert [begun_with(kept, now) for now in ("bf16", "fp32")] == ["bf16", "bf16"]  # type: ignore[arg-type]


def test_autocast_refuses_auto() -> None:
    with pytest.raises(ValueError, match="precision: given 'auto', allowed here: fp32, bf16"):
        autocast("cpu", "auto")


def test_bf16_without_its_instructions_runs_and_warns_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be(monkeypatch, onednn=False, avx512=False, amx=False, machine="x86_64")
    precision._warn_if_slow.cache_clear()
    for _ in range(2):
        with autocast("cpu", "bf16"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        with autocast("cpu", "fp32"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    precision._warn_if_slow.cache_clear()
    warning = capsys.readouterr().err
    assert warning.startswith("warning: precision bf16: this cpu has no instructions for bfloat16")
    assert warning.count("\n") == 1


def test_only_auto_precisions_are_replaced() -> None:
    before = load().starter
    after = before.with_auto("fp32")
    assert before.task("pusht").pretrain.precision == "auto"
    assert after.task("pusht").pretrain.precision == after.task("pusht").finetune["nfe1"].precision == "fp32"
    assert '"auto"' not in after.model_dump_json()
    by_hand = Optimization.model_validate(before.task("pusht").diffusion.model_dump() | {"precision": "bf16"})
    assert by_hand.with_auto("fp32") == by_hand
