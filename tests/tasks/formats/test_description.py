"""The printed description of a data set, and its suggested block of params.yaml."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.tasks.custom.settings import CustomSettings
from pipeline.tasks.formats.description import describe, suggested_keys
from pipeline.tasks.formats.reading import open_recording
from pipeline.tasks.formats.vectors import read_demonstrations
from tests.tasks.formats.files import WRITERS, episodes, write_npz, write_v3


def block_in(text: str) -> dict[str, Any]:
    return YAML(typ="safe").load(text.partition("For params.yaml:\n\n")[2])


@pytest.mark.parametrize("form", WRITERS)
def test_suggested_block_reads_the_data_set(tmp_path: Path, form: str) -> None:
    write, _, observation, action = WRITERS[form]
    path = write(tmp_path, episodes())
    ((block, settings),) = block_in(describe(open_recording(path), path)).items()
    source = CustomSettings.model_validate(settings["custom"]).datasets[settings["data"]["dataset"]]
    assert block.isidentifier() and settings["task"] == "custom"
    assert ("environment" in settings["custom"]) == (settings["select"] != {"rule": "validation_loss"})
    assert (source.observation, source.action) == ({observation: 4}, {action: 2})
    recording = open_recording(Path(source.path or ""), source.format)
    assert read_demonstrations(recording, list(source.observation), *source.action).state.shape == (24, 4)


def test_suggested_block_has_the_recorded_environment(tmp_path: Path) -> None:
    path = WRITERS["minari_hdf5"][0](tmp_path, episodes())
    ((block, settings),) = block_in(describe(open_recording(path), path)).items()
    environment = CustomSettings.model_validate(settings["custom"]).environment
    assert environment is not None
    assert (environment.id, environment.module, environment.observation) == ("Reacher-v5", "gymnasium", ["pose"])
    assert environment.max_steps == settings["evaluation"]["max_steps"] == 50
    assert settings["select"]["evaluation"] == block


def test_description_lists_episodes_keys_and_ranges(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        episode | {"img": np.ones((len(episode["state"]), 40, 40, 3), np.uint8)} for episode in episodes()
    ]
    path = write_npz(tmp_path, given)
    text = describe(open_recording(path), path)
    assert text.startswith(f"{path}: npz, 3 episodes of 5 to 12 steps (median 7), 24 steps\n")
    assert "img: uint8 40 x 40 x 3, no vector" in text
    least = np.concatenate([episode["state"][:, 2] for episode in episodes()]).min()
    assert f"{least:.4g}" in next(line for line in text.splitlines() if line.startswith("state[2]"))


def test_description_reports_obstacles_to_learning(tmp_path: Path) -> None:
    path = write_v3(tmp_path, episodes())
    stats = path / "meta/stats.json"
    stats.write_text(stats.read_text(encoding="utf-8").replace('"min": [', '"min": [-7, '), encoding="utf-8")
    assert "- it cannot be learned from as it is: " in describe(open_recording(path), path)
    (tmp_path / "poses").mkdir()
    path = write_npz(tmp_path / "poses", [{"action": episode["state"]} for episode in episodes()])
    assert describe(open_recording(path), path).endswith("No key holds actions beside observations to learn from.")


def test_rewards_and_counters_are_not_suggested_as_observations(tmp_path: Path) -> None:
    given = [
        {"pose": ep["state"], "touch": ep["state"], "reward": ep["state"], "action": ep["action"]} for ep in episodes()
    ]
    assert suggested_keys(open_recording(write_npz(tmp_path, given))) == (["pose", "touch"], "action")
    assert suggested_keys(open_recording(write_v3(tmp_path, episodes()))) == (["observation.state"], "action")
