"""Findings of the survey of a data set, and none for a sound one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.tasks.formats.lerobot_writer import write_lerobot
from pipeline.tasks.formats.reading import open_recording
from pipeline.tasks.formats.survey import survey
from pipeline.utils.errors import UserError
from tests.tasks.formats.files import LENGTHS, RATE, episodes, write_npz, write_v2, write_v3


def findings(folder: Path, given: list[dict[str, Any]]) -> str:
    return "\n".join(survey(open_recording(write_npz(folder, given)), "action").findings)


def test_a_sound_data_set_has_ranges_and_no_findings(tmp_path: Path) -> None:
    seen = survey(open_recording(write_v3(tmp_path, episodes())), "action")
    assert seen.lengths == LENGTHS
    assert (seen.findings, seen.unreadable) == ((), ())
    y = next(component for component in seen.components if component.name == "y")
    actions = np.concatenate([episode["action"][:, 1] for episode in episodes()])
    assert (y.key, y.index, y.least, y.greatest) == ("action", 1, actions.min(), actions.max())


def test_constant_and_repeated_components_and_nan_are_found(tmp_path: Path) -> None:
    given = episodes()
    for episode in given:
        episode["state"][:, 1] = 3
        episode["state"][:, 3] = episode["action"][:, 0]
    given[1]["state"][2:4, 0] = np.nan
    found = findings(tmp_path, given)
    assert "constant: state[1]" in found
    assert "action[0] repeats state[3]" in found or "state[3] repeats action[0]" in found
    assert "state[0] is NaN or infinite in 2 steps" in found


@pytest.mark.parametrize(("later", "text"), [(1, "that of the next step"), (0, "that of the same step")])
def test_actions_that_are_positions_are_found(tmp_path: Path, later: int, text: str) -> None:
    given = [{"state": episode["state"][:, :2], "action": episode["action"]} for episode in episodes()]
    for episode in given:
        episode["state"][later:] = episode["action"][: len(episode["action"]) - later]
    assert f"action equals state, {text}, in 100% of the steps" in findings(tmp_path, given)


def test_actions_that_look_normalised_and_frozen_observations_are_found(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        episode | {"action": np.tanh(9 * episode["action"]), "state": np.repeat(episode["state"][::2], 2, 0)}
        for episode in episodes([8, 12])
    ]
    found = findings(tmp_path, given)
    assert "action lies within -1 and 1: it looks normalised" in found
    assert "state equals that of the step before in 56% of the steps" in found


def test_gaps_in_time_are_found(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = write_v3(tmp_path, episodes())
    file = path / "data/chunk-000/file-000.parquet"
    table = parquet.read_table(file)
    place = table.column_names.index("timestamp")
    times = table["timestamp"].to_numpy() + 0.3 * (table["frame_index"].to_numpy() >= 4)
    parquet.write_table(table.set_column(place, "timestamp", [times.astype(np.float32)]), file)
    (path / "meta/stats.json").unlink()
    found = survey(open_recording(path), "action").findings
    assert found == (f"gaps in time: {len(LENGTHS)} steps last longer or shorter than 1/{RATE:g} s, one 0.4 s",)


def test_unreadable_episodes_are_counted_with_the_reason(tmp_path: Path) -> None:
    path = write_v2(tmp_path, episodes())
    file = path / "data/chunk-000/episode_000001.parquet"
    file.write_bytes(b"PAR1")
    seen = survey(open_recording(path), "action")
    assert seen.lengths == (LENGTHS[0], LENGTHS[2])
    assert [str(file) in reason for reason in seen.unreadable] == [True]
    for other in (0, 2):
        (path / f"data/chunk-000/episode_{other:06d}.parquet").unlink()
    with pytest.raises(UserError, match="is absent"):
        survey(open_recording(path), "action")


def test_scalar_key_is_a_component(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "set", [{"action": np.arange(5.0)}], 10, "", "")
    assert survey(open_recording(tmp_path / "set"), "action").components[0].greatest == 4
