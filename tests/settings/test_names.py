"""Renamed settings: old names are refused, and older model files load and are saved unchanged."""

from pathlib import Path

import pytest

from pipeline.settings.names import RENAMED, as_stored, from_stored
from pipeline.training.checkpoint import load_policy, save_policy
from pipeline.utils.code_deps import ROOT
from tests.settings.params import refused, replaced

SHIPPED = ROOT / "data" / "checkpoints" / "lab" / "pusht" / "ft_fm-nfe1.safetensors"


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_name_is_refused_with_the_new_one(old: str, new: str) -> None:
    assert refused(replaced(f" {new}: ", f" {old}: ")).endswith(f"{old}: unknown key; it is called {new} now")


def test_stored_names_round_trip() -> None:
    settings = {"n_obs_steps": 1, "net": {"input": {"max_grad_norm": 1.0}}, "widths": [1, 2]}
    stored = {"observation_horizon": 1, "net": {"input": {"clip": 1.0}}, "widths": [1, 2]}
    assert as_stored(settings) == stored
    assert from_stored(stored) == settings


def test_older_model_file_round_trips_byte_for_byte(tmp_path: Path) -> None:
    policy, record = load_policy(SHIPPED)
    save_policy(tmp_path / "again.safetensors", policy, record, half=True)
    assert (tmp_path / "again.safetensors").read_bytes() == SHIPPED.read_bytes()
