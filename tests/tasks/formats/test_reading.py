"""Reading recordings: equal from every format, and a one-line error with file and key for every defect."""

import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from pipeline.tasks.demonstrations import Demonstrations
from pipeline.tasks.formats.reading import open_recording
from pipeline.tasks.formats.vectors import read_demonstrations, require_windows
from pipeline.utils.errors import UserError
from tests.tasks.formats.files import LENGTHS, ONE_BY_ONE, WRITERS, episodes, write_npz, write_robomimic, write_zarr

FORMS = pytest.mark.parametrize("form", WRITERS)


def write(form: str, folder: Path, given: Any = None) -> Path:
    return WRITERS[form][0](folder, episodes() if given is None else given)


def read(form: str, path: Path) -> Demonstrations:
    _, _, observation, action = WRITERS[form]
    return read_demonstrations(open_recording(path), [observation], action)


@FORMS
def test_every_format_is_detected_and_gives_the_same_demonstrations(tmp_path: Path, form: str) -> None:
    path = write(form, tmp_path).rename(tmp_path / "demonstrations")
    recording, expected = open_recording(path), episodes()
    demonstrations = read(form, path)
    assert recording.format == WRITERS[form][1]
    assert tuple(np.diff(demonstrations.episode_ends, prepend=0)) == LENGTHS
    np.testing.assert_array_equal(demonstrations.state, np.concatenate([episode["state"] for episode in expected]))
    np.testing.assert_array_equal(demonstrations.action, np.concatenate([episode["action"] for episode in expected]))
    assert recording.features[WRITERS[form][3]].shape == (2,)


@FORMS
def test_error_for_an_absent_key_lists_the_available_keys(tmp_path: Path, form: str) -> None:
    recording = open_recording(write(form, tmp_path))
    _, _, observation, action = WRITERS[form]
    with pytest.raises(UserError, match=f"observation key 'velocity' is absent; there are .*{observation}"):
        read_demonstrations(recording, ["velocity"], action)
    with pytest.raises(UserError, match=f"action key 'torque' is absent; there are .*{action}"):
        read_demonstrations(recording, [observation], "torque")


@FORMS
def test_nan_is_refused_or_skips_a_separately_stored_episode(tmp_path: Path, form: str) -> None:
    given = episodes()
    given[1]["action"][4, 1] = np.nan
    path = write(form, tmp_path, given)
    complaint = r"episode 1|demo_1"
    if form in ONE_BY_ONE:
        with pytest.warns(UserWarning, match=f"left out 1 of 3 episodes, the first since .*({complaint}).* at step 4 "):
            demonstrations = read(form, path)
        assert tuple(np.diff(demonstrations.episode_ends, prepend=0)) == (LENGTHS[0], LENGTHS[2])
    else:
        with pytest.raises(
            UserError, match=f"({complaint}): action holds NaN.*first at step 4 .steps affected: 1."
        ) as caught:
            read(form, path)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@FORMS
def test_wrong_declared_format_is_refused(tmp_path: Path, form: str) -> None:
    path = write(form, tmp_path)
    wrong = "npz" if WRITERS[form][1] != "npz" else "zarr"
    with pytest.raises(UserError, match=f"holds a data set of format {WRITERS[form][1]}, but format says {wrong}"):
        open_recording(path, wrong)


def test_keys_are_concatenated_in_their_order_and_flattened(tmp_path: Path) -> None:
    given: Any = [{"action": np.ones((4, 1)), "points": np.arange(24).reshape(4, 3, 2), "grip": np.arange(4) > 1}]
    recording = open_recording(write_zarr(tmp_path, given))
    state = read_demonstrations(recording, ["grip", "points", "grip"], "action").state
    np.testing.assert_array_equal(state[2], [1, *range(12, 18), 1])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (np.full((24, 4), "a"), r"key 'state' is <U1 of shape \(4,\), no vector; there are action"),
        (np.zeros((24, 64, 64, 3), np.uint8), r"is uint8 of shape \(64, 64, 3\), no vector"),
        (np.zeros((24, 4), complex), "is complex128 of shape"),
        (np.full((24, 4), 1e300), "state holds NaN, infinity or numbers beyond float32"),
    ],
)
@pytest.mark.parametrize("form", ["npz", "zarr2"])
def test_invalid_arrays_are_refused(tmp_path: Path, form: str, state: NDArray[Any], message: str) -> None:
    path = write(form, tmp_path)
    if form == "npz":
        np.savez(path, **(dict(np.load(path)) | {"state": state}))
    else:
        group = zarr.open_group(path, mode="a")
        del group["data/state"]
        group.create_array("data/state", data=state)
    with pytest.raises(UserError, match=message):
        read(form, path)


def test_images_are_not_loaded_with_other_keys(tmp_path: Path) -> None:
    path = write_zarr(
        tmp_path, [episode | {"img": np.ones((len(episode["state"]), 40, 40, 3))} for episode in episodes()]
    )
    (path / "data/img/0.0.0.0").write_bytes(b"damaged")
    assert len(read("zarr2", path).state) == sum(LENGTHS)


def test_robomimic_environment_is_kept_and_demos_are_sorted_by_number(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path, episodes(range(1, 13)))
    assert tuple(np.diff(read("robomimic", path).episode_ends, prepend=0)) == tuple(range(1, 13))
    assert open_recording(path).rate == 20
    assert open_recording(path).environment == {
        "id": "robosuite/Lift", "arguments": {"control_freq": 20}, "success": "success",
    }  # fmt: skip
    path = write_robomimic(tmp_path, episodes(), env_name="Reacher-v5", type=2, env_kwargs={"width": 5})
    assert open_recording(path).environment == {"id": "Reacher-v5", "arguments": {"width": 5}}


def test_minari_environment_is_kept(tmp_path: Path) -> None:
    recipe = open_recording(write("minari_hdf5", tmp_path)).environment
    assert recipe == {"id": "Reacher-v5", "module": "gymnasium", "arguments": {}, "max_steps": 50}


@pytest.mark.parametrize("form", ["robomimic", "minari_hdf5", "npz", "zarr_zip"])
def test_truncated_file_is_refused(tmp_path: Path, form: str) -> None:
    path = write(form, tmp_path)
    file = path / "data" / "main_data.hdf5" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        read(form, path)
    assert "\n" not in str(caught.value)


def test_episode_without_a_key_is_skipped(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path, episodes())
    with h5py.File(path, "a") as file:
        del file["data/demo_2/obs/state"]
    with pytest.warns(UserWarning, match="left out 1 of 3 episodes, the first since .*demo_2/obs/state is missing"):
        assert read("robomimic", path).n_episodes == 2


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; expected a folder \(LeRobotDataset"):
        open_recording(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("none", encoding="utf-8")
    (tmp_path / "more.txt").write_text("none", encoding="utf-8")
    with pytest.raises(UserError, match="holds no data set of a known format"):
        open_recording(tmp_path)
    with pytest.raises(UserError, match="is of no known format"):
        open_recording(tmp_path / "notes.txt")
    with zipfile.ZipFile(tmp_path / "folder.zip", "w") as archive:
        archive.writestr("set/meta/info.json", "{}")
    with pytest.raises(UserError, match="unpack it and give the folder"):
        open_recording(tmp_path / "folder.zip")


def test_single_inner_folder_is_opened(tmp_path: Path) -> None:
    shutil.move(write("lerobot3", tmp_path), tmp_path / "outer" / "set")
    assert open_recording(tmp_path / "outer").path == tmp_path / "outer" / "set"


def test_episodes_shorter_than_the_horizon_are_refused(tmp_path: Path) -> None:
    demonstrations = read("npz", write_npz(tmp_path, episodes()))
    require_windows(demonstrations, 5)
    with pytest.raises(UserError, match=r"data\.horizon: given 8, 2 of 3 episodes are shorter; the shortest, number"):
        require_windows(demonstrations, 8)


@pytest.mark.skipif("FLOWTUNE_MIRROR" not in os.environ, reason="needs the public data: set FLOWTUNE_MIRROR")
def test_the_public_push_t_file_is_read() -> None:
    recording = open_recording(Path(os.environ["FLOWTUNE_MIRROR"]) / "pusht_cchi_v7_replay.zarr.zip")
    assert set(recording.features) == {"state", "action", "keypoint", "n_contacts", "img"}
    assert not recording.features["img"].is_vector
    demonstrations = read_demonstrations(recording, ["keypoint", "n_contacts"], "action")
    assert demonstrations.state.shape == (25650, 19)
    assert demonstrations.n_episodes == 206
