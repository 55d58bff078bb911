"""Descriptions of data sets and models among a stage's files, for MLflow."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.tracking.files import data_sets, model_digests, models
from pipeline.utils.code_deps import ROOT
from pipeline.utils.provenance import file_digests

CHECKPOINT = Path("data/checkpoints/lab/pusht/ft_fm-nfe1.safetensors")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_data_set_has_name_digest_and_arrays() -> None:
    prepared, reports = Path("prepared.npz"), Path("reports/lab/episodes")
    np.savez(prepared, action=np.zeros((3, 16, 2), np.float32), names=np.array(["a"]))
    reports.mkdir(parents=True)
    (reports / "one.csv").write_text("score\n1\n", encoding="utf-8")

    of_task, of_none = (
        list(data_sets({path: file_digests([path]) for path in (prepared, reports)}, name)) for name in ("human", "")
    )
    assert [each.name for each in of_task] == ["human/prepared.npz", "human/episodes"]
    assert [each.name for each in of_none] == ["prepared.npz", "reports/lab/episodes"]
    assert of_task[0].digest == hashlib.sha256(prepared.read_bytes()).hexdigest()[:36]
    assert of_task[0].arrays == {"action": ("float32", [3, 16, 2])}
    assert (of_task[1].files, of_task[1].size, of_task[1].arrays) == (1, 8, {})
    shutil.copytree(reports, "elsewhere")
    (moved,) = data_sets({Path("elsewhere"): file_digests([Path("elsewhere")])}, "")
    assert moved.digest == of_task[1].digest


def test_models_and_empty_zarr_stores_are_no_data_sets() -> None:
    frames, model = Path("frames.zarr"), Path("base.safetensors")
    frames.mkdir()
    (frames / "zarr.json").touch()
    model.touch()
    read = {path: file_digests([path]) for path in (frames, model)}
    assert not list(data_sets(read, ""))
    assert model_digests(read) == [hashlib.sha256(b"").hexdigest()]


def test_policy_is_described_by_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (model,) = models(file_digests([CHECKPOINT]))
    assert (model.name, model.kind, model.step) == ("lab-pusht-ft_fm-nfe1", "policy", 21934)
    assert model.digest == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    assert (model.params["method"], model.params["data.n_action_steps"], model.params["net.width"]) == (
        "ft_fm",
        "8",
        "256",
    )
    assert model.takes == {"observation": ("float32", [-1, 1, 18]), "noise": ("float32", [-1, 16, 2])}
    assert model.gives == {"action": ("float32", [-1, 16, 2])}


def test_last_checkpoint_of_a_training_is_its_model() -> None:
    trained = Path("data/starter/digits/i_cfm")
    trained.mkdir(parents=True)
    for step in (0, 100, 1000):
        header = json.dumps({"task": "digits", "method": "i_cfm", "train_steps": step})
        weights = {"weight": np.zeros(2, np.float32)}
        save_file(weights, trained / f"step-{step:07d}.safetensors", {"flowtune_images": header})
    save_file({"weight": np.zeros(2, np.float32)}, "toy.safetensors")
    (model,) = models(file_digests([trained, Path("toy.safetensors")]))
    assert (model.name, model.step) == ("digits-i_cfm-step-0001000", 1000)
    assert model.gives == {"image": ("float32", [-1, 1, 8, 8])}
