"""Shipped results replace training only where settings, data and files match."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.utils import shipped
from pipeline.utils.errors import UserError
from pipeline.utils.shipped import Shipment, ship

DATA = Path("data/lab/cifar10/images.npz")
MODELS, LOG = Path("data/lab/cifar10/i_cfm"), Path("reports/lab/images/training/i_cfm.csv")


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ship the results of a stage in a new folder, then remove some of them."""
    monkeypatch.chdir(tmp_path)
    for path, text in [(DATA, "images"), (MODELS / "step-0.st", "early"), (MODELS / "step-1.st", "late"), (LOG, "log")]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    stage().note()
    list(ship("lab", "cifar10"))
    (MODELS / "step-1.st").unlink()
    LOG.unlink()


def stage(name: str = "pretrain", **settings: object) -> Shipment:
    made_of: Mapping[str, object] = {"cifar10": {"pretrain": {"lr": 1e-3, "steps": 10, **settings}}}
    return Shipment("lab", "cifar10", name, made_of, [DATA], [MODELS, LOG])


def test_shipped_results_replace_training(capsys: pytest.CaptureFixture[str]) -> None:
    (MODELS / "other.st").write_text("of another training", encoding="utf-8")
    assert stage().unpack()
    assert "taken in place of training" in capsys.readouterr().out
    assert sorted(path.name for path in MODELS.iterdir()) == ["step-0.st", "step-1.st"]
    assert ((MODELS / "step-1.st").read_text(encoding="utf-8"), LOG.read_text(encoding="utf-8")) == ("late", "log")
    assert not stage("another").unpack()


def test_shipped_results_of_other_settings_or_data_are_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert not stage(lr=2e-3).unpack()
    assert capsys.readouterr().out.endswith("pretrain.json: not taken, of another settings.cifar10.pretrain.lr\n")
    DATA.write_text("other images", encoding="utf-8")
    assert not stage().unpack()
    assert not LOG.exists()


def test_damaged_shipped_results_are_not_taken() -> None:
    (shipped.folder("lab", "cifar10") / "i_cfm" / "step-1.st").write_text("l", encoding="utf-8")
    assert not stage().unpack()
    assert not LOG.exists()


def test_the_same_content_is_shipped_once() -> None:
    assert stage().unpack()
    base = Path("data/lab/cifar10/base.st")
    base.write_text("late", encoding="utf-8")
    Shipment("lab", "cifar10", "select", {}, [MODELS], [base]).note()
    assert dict(ship("lab", "cifar10"))["select"] == []
    base.unlink()
    assert Shipment("lab", "cifar10", "select", {}, [MODELS], [base]).unpack()
    assert base.read_text(encoding="utf-8") == "late"


def test_changed_or_too_large_files_are_not_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"step-1\.st: given another file than pretrain made, allowed: "):
        list(ship("lab", "cifar10"))
    assert stage().unpack()
    monkeypatch.setattr(shipped, "MAX_BYTES", 3)
    with pytest.raises(UserError, match=r"step-0\.st: given 5 bytes, allowed: at most 3 in a file that is shipped$"):
        list(ship("lab", "cifar10"))
