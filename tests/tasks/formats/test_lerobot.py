"""LeRobotDataset: a real data set, writing, and common defects."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.tasks.formats.lerobot_writer import write_lerobot
from pipeline.tasks.formats.reading import open_recording
from pipeline.tasks.formats.vectors import read_demonstrations
from pipeline.utils.errors import UserError
from tests.tasks.formats.files import LENGTHS, episodes, write_lines, write_v2, write_v3

DATA, LISTED = Path("data/chunk-000/file-000.parquet"), Path("meta/episodes/chunk-000/file-000.parquet")


def states(path: Path) -> Any:
    return read_demonstrations(open_recording(path), ["observation.state"], "action").state


@pytest.mark.skipif("FLOWTUNE_MIRROR" not in os.environ, reason="needs the public data: set FLOWTUNE_MIRROR")
def test_real_data_set_is_read_without_videos() -> None:
    recording = open_recording(Path(os.environ["FLOWTUNE_MIRROR"]) / "lerobot_so101_v3")
    demonstrations = read_demonstrations(recording, ["observation.state"], "action")
    assert (recording.title, recording.rate) == ("LeRobotDataset v3.0", 30)
    assert recording.facts == {"robot": "so101_follower", "tasks": "Pick the orange cube and place it in the box"}
    assert recording.features["action"].names[-1] == "gripper.pos"
    assert recording.features["observation.images.top"].dtype == "video"
    assert demonstrations.state.shape == demonstrations.action.shape == (1492, 6)
    assert demonstrations.episode_ends.tolist() == [373, 747, 1119, 1492]


@pytest.mark.parametrize("write", [write_v3, write_v2])
def test_metadata_is_read(tmp_path: Path, write: Callable[..., Path]) -> None:
    recording = open_recording(write(tmp_path, episodes()))
    assert recording.rate == 10
    assert recording.facts == {"robot": "arm", "tasks": "push it"}
    assert recording.features["action"].names == ("x", "y")
    state = np.concatenate([episode["state"] for episode in episodes()])
    np.testing.assert_allclose(recording.limits["observation.state"], [state.min(0), state.max(0)])


def test_tasks_in_json_lines_are_read_in_version_3_too(tmp_path: Path) -> None:
    path = write_v3(tmp_path, episodes())
    (path / "meta/tasks.parquet").unlink()
    write_lines(path / "meta/tasks.jsonl", [{"task_index": 0, "task": "push"}, {"task_index": 1, "task": "pull"}])
    assert open_recording(path).facts["tasks"] == "push; pull"


def test_writing_is_deterministic_and_replaces_old_files(tmp_path: Path) -> None:
    first, second = (write_v3(tmp_path / name, episodes()) for name in "ab")
    (second / "stale.txt").write_text("old", encoding="utf-8")
    write_v3(tmp_path / "b", episodes())
    files = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    assert files == {path.relative_to(second) for path in second.rglob("*") if path.is_file()}
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_written_columns_match_lerobots_layout(tmp_path: Path) -> None:
    path = write_v3(tmp_path, episodes())
    info = json.loads((path / "meta/info.json").read_text(encoding="utf-8"))
    table = parquet.ParquetFile(path / DATA)
    assert table.num_row_groups == info["total_episodes"] == len(LENGTHS)
    columns = table.read().to_pydict()
    assert set(columns) == set(info["features"])
    assert columns["index"] == list(range(sum(LENGTHS)))
    assert columns["frame_index"][LENGTHS[0] : LENGTHS[0] + 2] == [0, 1]
    assert columns["timestamp"][1] == pytest.approx(0.1)
    listed = parquet.read_table(path / LISTED).to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in listed] == [(0, 7), (7, 19), (19, 24)]
    assert listed[1]["stats/action/max"] == pytest.approx(episodes()[1]["action"].max(0))


def test_scalar_features_are_read_and_written(tmp_path: Path) -> None:
    given = [{"observation.state": np.arange(4.0), "action": np.ones((4, 1)), "done": np.arange(4) > 2}]
    write_lerobot(tmp_path / "set", given, 2.5, "wait", "none")
    demonstrations = read_demonstrations(open_recording(tmp_path / "set"), ["observation.state", "done"], "action")
    np.testing.assert_array_equal(demonstrations.state, [[0, 0], [1, 0], [2, 0], [3, 1]])


def test_inconsistent_episodes_are_not_written(tmp_path: Path) -> None:
    for wrong in ([], [*episodes(), {"state": np.ones((3, 4), np.float32)}], [{"a": np.ones((3, 4)), "b": np.ones(2)}]):
        with pytest.raises(ValueError, match="episode"):
            write_lerobot(tmp_path / "set", wrong, 10, "", "")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    for file in (DATA, LISTED, Path("meta/tasks.parquet")):
        path = write_v3(tmp_path, episodes())
        (path / file).write_bytes((path / file).read_bytes()[:-20])
        with pytest.raises(UserError, match=f"{path / file}: is no whole parquet file, damaged or half written"):
            states(path)


def test_truncated_episode_of_version_2_is_skipped(tmp_path: Path) -> None:
    path = write_v2(tmp_path, episodes())
    file = path / "data/chunk-000/episode_000001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=f"left out 1 of 3 episodes, the first since {file}: is no whole parquet file"):
        assert len(states(path)) == LENGTHS[0] + LENGTHS[2]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(codebase_version="v1.6"), "codebase_version is 'v1.6', must be v2.1 or v3.0"),
        (lambda info: info.pop("codebase_version"), "codebase_version is None, must be v2.1 or v3.0"),
        (lambda info: info.pop("fps"), "fps is None"),
        (lambda info: info.update(total_episodes=4), "says total_episodes 4, but meta lists 3; it is half"),
        (lambda info: info.update(data_path="{file}.parquet"), "data_path is .*, may name chunk_index, file_index"),
        (lambda info: info["features"]["action"].pop("shape"), "features.action is .*, expected dtype, shape"),
        (lambda info: info["features"]["action"].update(shape=[3]), "column action is .* in 24 rows, expected .3,."),
    ],
)
def test_inconsistent_info_json_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = write_v3(tmp_path, episodes())
    edit(path / "meta/info.json", change)
    with pytest.raises(UserError, match=message):
        states(path)


def test_missing_rows_and_files_are_refused(tmp_path: Path) -> None:
    path = write_v3(tmp_path, episodes())
    parquet.write_table(parquet.read_table(path / DATA).slice(0, 20), path / DATA)
    with pytest.raises(UserError, match="episode 2 has 1 rows, meta lists 5; it is half written"):
        states(path)
    (path / DATA).unlink()
    with pytest.raises(UserError, match="is absent, though the data set lists it; fetch it anew"):
        states(path)


def test_null_values_are_refused(tmp_path: Path) -> None:
    path = write_v3(tmp_path, episodes())
    table = parquet.read_table(path / DATA)
    rows = table["action"].to_pylist()
    rows[3] = [None, 1.0]
    column = pa.array(rows, type=table["action"].type)
    parquet.write_table(table.set_column(table.column_names.index("action"), "action", column), path / DATA)
    with pytest.raises(UserError, match=r"episode 0: action holds NaN.*first at step 3 "):
        states(path)


def test_rows_are_read_by_episode_in_any_order(tmp_path: Path) -> None:
    path = write_v3(tmp_path, episodes())
    expected = states(path)
    table = parquet.read_table(path / DATA)
    parquet.write_table(pa.concat_tables([table.slice(19), table.slice(0, 19)]), path / DATA)
    np.testing.assert_array_equal(states(path), expected)


@pytest.mark.parametrize("write", [write_v3, write_v2])
def test_statistics_of_other_data_are_refused_and_absent_ones_accepted(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write(tmp_path, episodes())
    other = write(tmp_path / "other", [{key: 2 * array for key, array in episode.items()} for episode in episodes()])
    name = open_recording(path).statistics.name  # type: ignore[union-attr]
    (other / "meta" / name).replace(path / "meta" / name)
    with pytest.raises(UserError, match=r"component 0 of observation\.state reaches .*, but the data reach"):
        states(path)
    (path / "meta" / name).unlink()
    assert len(states(path)) == sum(LENGTHS)
