"""The task of a block ``custom``: its data sets and its environment."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.tasks import archive
from pipeline.tasks.api import Task
from pipeline.tasks.download import fetch
from pipeline.tasks.loader import load_task
from pipeline.utils.errors import UserError
from tests.project import write_checksum
from tests.tasks.formats.files import LENGTHS, WRITERS, episodes, write_npz, write_v3
from tests.tasks.http_server import serving

REACHER = {"id": "Reacher-v5", "returns": [-50.0, 0.0], "max_steps": 50}


def block(place: Path | None, **changes: Any) -> dict[str, Any]:
    source = {"path": place and str(place), "observation": {"state": 4}, "action": {"action": 2}} | changes
    return {"datasets": {"mine": {key: value for key, value in source.items() if value is not None}}}


def fetched(task: Task, destination: Path) -> Any:
    data_set = task.datasets["mine"]
    return data_set.read(fetch("mine", data_set, destination))


@pytest.mark.parametrize("form", WRITERS)
def test_local_data_set_is_copied_and_read(tmp_path: Path, form: str) -> None:
    write, name, observation, action = WRITERS[form]
    (tmp_path / "theirs").mkdir()
    path = write(tmp_path / "theirs", episodes())
    changes = {"format": name, "observation": {observation: 4}, "action": {action: 2}}
    task = load_task("custom", block(path, **changes))
    demonstrations = fetched(task, tmp_path / "mine")
    shutil.rmtree(tmp_path / "theirs")
    assert task.datasets["mine"].read(tmp_path / "mine").content_sha256() == demonstrations.content_sha256()
    np.testing.assert_array_equal(demonstrations.action, np.concatenate([episode["action"] for episode in episodes()]))


def test_videos_are_not_copied(tmp_path: Path) -> None:
    path = write_v3(tmp_path, episodes())
    (path / "videos/observation.images.top").mkdir(parents=True)
    (path / "videos/observation.images.top/file-000.mp4").write_bytes(b"a picture")
    changes = {"observation": {"observation.state": 4}}
    fetched(load_task("custom", block(path, **changes)), tmp_path / "mine")
    assert sorted(inner.name for inner in (tmp_path / "mine").iterdir()) == ["data", "meta"]


def test_local_zip_is_unpacked_if_its_checksum_matches(tmp_path: Path) -> None:
    archive.pack(write_v3(tmp_path, episodes()), tmp_path / "set.zip")
    task = load_task("custom", block(tmp_path / "set.zip", observation={"observation.state": 4}))
    assert len(fetched(task, tmp_path / "mine").state) == sum(LENGTHS)
    write_checksum(tmp_path / "set.zip")
    fetched(task, tmp_path / "again")
    (tmp_path / "set.zip.sha256").write_text("0" * 64, encoding="utf-8")
    with pytest.raises(UserError, match="wrong checksum: sha256"):
        fetched(task, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_downloaded_data_set_must_match_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    path = write_v3(tmp_path, episodes())
    archive = Path(shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path, "set"))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    with serving(archive.read_bytes()) as server:
        given = {"url": f"{server.url}/set.zip", "observation": {"observation.state": 4}}
        shutil.rmtree(path)
        demonstrations = fetched(load_task("custom", block(None, sha256=sha256, **given)), tmp_path / "mine")
        assert len(demonstrations.state) == sum(LENGTHS)
        with pytest.raises(UserError, match="wrong checksum: sha256"):
            fetched(load_task("custom", block(None, sha256="0" * 64, **given)), tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "not/there"}, "not/there: does not exist; expected a folder"),
        ({"observation": {"pose": 4}}, "set.npz: observation key 'pose' is absent; there are state, action"),
        ({"observation": {"state": 5}}, r"custom\.datasets\.mine\.observation\.state: given 5, allowed: 4 numbers"),
        ({"action": {"action": 3}}, r"custom\.datasets\.mine\.action\.action: given 3, allowed: 2 numbers a step in"),
        ({"format": "zarr"}, "set.npz: holds a data set of format npz, but format says zarr"),
        ({"sha256": "0" * 64}, "set.npz: wrong checksum: sha256"),
    ],
)
def test_source_that_does_not_fit_the_data_gives_a_one_line_error(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_npz(tmp_path, episodes())
    with pytest.raises(UserError, match=message) as caught:
        fetched(load_task("custom", block(path, **changes)), tmp_path / "copied" / "mine")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "copied").exists() or list((tmp_path / "copied").iterdir()) == []


def test_task_without_environment_is_offline(tmp_path: Path) -> None:
    task = load_task("custom", block(write_npz(tmp_path, episodes())))
    demonstrations = fetched(task, tmp_path / "mine")
    assert task.offline and task.check
    task.check(demonstrations, 5)
    with pytest.raises(UserError, match=r"data\.horizon: given 16, 3 of 3 episodes are shorter"):
        task.check(demonstrations, 16)


def test_task_with_environment_is_evaluated_and_checked(tmp_path: Path) -> None:
    path = write_npz(tmp_path, episodes())
    task = load_task("custom", block(path) | {"environment": REACHER})
    assert task.title == "Reacher-v5"
    (environment,) = task.evaluations("mine").values()
    assert task.evaluations("mine").keys() == {"mine"} and environment.renders
    env_factory = environment.factory(max_steps=3)
    env = env_factory.make_env()
    first = env.reset(**env_factory.reset_arguments(5))
    np.testing.assert_array_equal(first, env.reset(**env_factory.reset_arguments(5)))
    assert [env.step(np.zeros(2)).done for _ in range(3)] == [False, False, True]
    assert task.check
    with pytest.raises(UserError, match="observations of Reacher-v5 have 10 numbers, those of the demonstrations 4"):
        task.check(fetched(task, tmp_path / "mine"), 5)


def test_invalid_blocks_are_refused() -> None:
    for given, message in (
        (None, "given 'custom' alone, allowed: with a block custom"),
        ({}, r"custom\.datasets: "),
        (block(Path("a"), observation={"state": "four"}), r"custom\.datasets\.mine\.observation\.state: given 'four'"),
        (block(Path("a")) | {"environment": REACHER | {"success": "ok"}}, r"custom\.environment: "),
        (block(Path("a")) | {"expert": {"policy": "a:b"}}, "expert: allowed: with an environment"),
    ):
        with pytest.raises(UserError, match=message):
            load_task("custom", json.loads(json.dumps(given)))
