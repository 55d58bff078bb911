"""Push-T demonstrations: equal from every format, and a one-line error for every defect."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.storage import ZipStore

from pipeline.tasks.datasets import REPOSITORY
from pipeline.tasks.loader import load_task
from pipeline.tasks.pusht.files import read_pusht
from pipeline.utils.errors import UserError

Arrays = dict[str, NDArray[np.generic]]
KEYS = {"state": "data/state", "action": "data/action", "episode_ends": "meta/episode_ends"}


def good_arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "state": rng.uniform(50, 450, (30, 5)).astype(np.float32),
        "action": rng.uniform(50, 450, (30, 2)).astype(np.float32),
        "episode_ends": np.array([7, 19, 30], dtype=np.int64),
    }


def write(path: Path, arrays: Arrays, zarr_format: Literal[2, 3] = 2, shard: int | None = None) -> Path:
    """Write .npz, .zarr (a folder) or .zarr.zip, by the suffix. shard: rows of a shard of zarr 3."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return path
    store = ZipStore(path, mode="w") if path.suffix == ".zip" else path
    group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    for key, array in arrays.items():
        shards = shard and (shard, *array.shape[1:])
        group.create_array(KEYS[key], data=array, chunks=(10, *array.shape[1:]), shards=shards)
    if isinstance(store, ZipStore):
        store.close()
    return path


@pytest.mark.parametrize("name", ["d.npz", "d.zarr", "d.zarr.zip"])
@pytest.mark.parametrize("renamed", [False, True])
def test_all_formats_give_the_same_demonstrations_under_any_file_name(tmp_path: Path, name: str, renamed: bool) -> None:
    expected = good_arrays()
    path = write(tmp_path / name, expected)
    if renamed:
        path = path.rename(tmp_path / "demonstrations")
    demonstrations = read_pusht(path)
    np.testing.assert_array_equal(demonstrations.state, expected["state"])
    np.testing.assert_array_equal(demonstrations.action, expected["action"])
    np.testing.assert_array_equal(demonstrations.episode_ends, expected["episode_ends"])
    assert demonstrations.n_episodes == 3
    assert [demonstrations.episode(i) for i in range(3)] == [slice(0, 7), slice(7, 19), slice(19, 30)]
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            demonstrations.episode(outside)


def test_content_hash_depends_on_values_not_on_storage(tmp_path: Path) -> None:
    arrays = good_arrays()
    reference = read_pusht(write(tmp_path / "a.zarr", arrays)).content_sha256()
    wider: Arrays = {
        "state": arrays["state"].astype(">f8"),
        "action": np.asfortranarray(arrays["action"]),
        "episode_ends": arrays["episode_ends"].astype(np.int32),
    }
    assert read_pusht(write(tmp_path / "b.npz", wider)).content_sha256() == reference
    changed = arrays | {"episode_ends": np.array([8, 19, 30])}
    assert read_pusht(write(tmp_path / "c.npz", changed)).content_sha256() != reference


def nan_in_action() -> NDArray[np.generic]:
    action = good_arrays()["action"].copy()
    action[4, 1] = np.nan
    return action


@pytest.mark.parametrize("name", ["d.npz", "d.zarr", "d.zarr.zip"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("episode_ends", None, "array (meta/)?episode_ends is missing"),
        ("state", None, "state key 'state' is absent; there are action"),
        ("action", nan_in_action(), "episode 0: action holds NaN.* first at step 4 .steps affected: 1."),
        (
            "state",
            np.full((30, 5), np.inf, np.float32),
            "episode 0: state holds NaN.* first at step 0 .steps affected: 7.",
        ),
        ("state", np.ones((30, 4), np.float32), r"array state is float32 \('N', 4\), expected floating point \(N, 5\)"),
        ("action", np.ones((0, 2), np.float32), "array action has 0 rows"),
        ("state", np.ones((30, 5), np.int64), "array state is int64"),
        ("action", np.ones((29, 2), np.float32), "array action has 29 rows, expected 30"),
        ("episode_ends", np.array([7, 7, 30]), "does not increase strictly from above 0 .at index 1"),
        ("episode_ends", np.array([-1, 30]), "does not increase strictly from above 0 .at index 0"),
        ("episode_ends", np.array([7, 19, 29]), "array (action|state) has 30 rows, expected 29, where episode_"),
        ("episode_ends", np.array([7.0, 30.0]), "episode_ends is float64"),
    ],
)
def test_each_defect_gives_a_one_line_error(
    tmp_path: Path, name: str, key: str, value: NDArray[np.generic] | None, message: str
) -> None:
    arrays = good_arrays()
    if value is None:
        del arrays[key]
    else:
        arrays[key] = value
    path = write(tmp_path / name, arrays)
    with pytest.raises(UserError, match=message) as caught:
        read_pusht(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_chunk_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.zarr", good_arrays())
    (path / "data" / "state" / "1.0").unlink()
    with pytest.raises(UserError, match="array data/state lacks 1 of its 3 chunks"):
        read_pusht(path)


@pytest.mark.parametrize("name", ["d.zarr", "d.zarr.zip"])
# of 30 rows and chunks of 10: a shard for each chunk, a shard half full, one larger than the array
@pytest.mark.parametrize("shard", [None, 10, 20, 40])
def test_zarr_3_shards_are_read(tmp_path: Path, name: str, shard: int | None) -> None:
    expected = good_arrays()
    demonstrations = read_pusht(write(tmp_path / name, expected, 3, shard))
    np.testing.assert_array_equal(demonstrations.state, expected["state"])
    np.testing.assert_array_equal(demonstrations.episode_ends, expected["episode_ends"])


def test_missing_shard_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.zarr", good_arrays(), 3, 20)
    (path / "data/state/c/1/0").unlink()
    with pytest.raises(UserError, match="array data/state lacks 1 of its 2 shards; fetch it anew"):
        read_pusht(path)
    (path / "data/state/c/0/0").unlink()
    with pytest.raises(UserError, match="array data/state lacks 2 of its 2 shards"):
        read_pusht(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    chunk = write(tmp_path / "d.zarr", good_arrays()) / "data" / "state" / "0.0"
    chunk.write_bytes(b"damaged")
    with pytest.raises(UserError, match="array data/state cannot be read"):
        read_pusht(tmp_path / "d.zarr")

    npz = write(tmp_path / "d.npz", good_arrays())
    npz.write_bytes(npz.read_bytes()[:-200])
    with pytest.raises(UserError, match="neither a zarr folder nor a whole zip or npz file"):
        read_pusht(npz)

    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a zarr store"):
        read_pusht(tmp_path / "empty")

    with pytest.raises(UserError, match="does not exist"):
        read_pusht(tmp_path / "absent")


def test_damaged_chunk_gives_one_line_and_no_other_output(tmp_path: Path) -> None:
    arrays = good_arrays()
    arrays["state"] = np.ones((2000, 5), np.float32)
    path = write(tmp_path / "d.zarr", arrays)
    (path / "data" / "state" / "3.0").write_bytes(b"damaged")
    program = "import sys; from pathlib import Path; from pipeline.tasks.pusht.files import read_pusht\n"
    program += "try: read_pusht(Path(sys.argv[1]))\nexcept Exception as error: print(error)"
    result = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, encoding="utf-8", cwd=REPOSITORY, check=True
    )
    assert result.stdout.startswith(f"{path}: array data/state cannot be read: ")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_group_in_place_of_an_array_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.zarr", good_arrays())
    shutil.rmtree(path / "data" / "action")
    zarr.open_group(path, mode="a", zarr_format=2).create_group("data/action")
    with pytest.raises(UserError, match="action key 'action' is absent; there are state"):
        read_pusht(path)


@pytest.mark.skipif("FLOWTUNE_MIRROR" not in os.environ, reason="needs the public data: set FLOWTUNE_MIRROR")
def test_public_file_matches_its_pinned_hash() -> None:
    demonstrations = read_pusht(Path(os.environ["FLOWTUNE_MIRROR"]) / "pusht_cchi_v7_replay.zarr.zip")
    assert demonstrations.content_sha256() == load_task("pusht").datasets["pusht_human"].content_sha256
    assert demonstrations.state.shape == (25650, 5)
    assert demonstrations.n_episodes == 206
    # the action ranges that Diffusion Policy's own code hard-codes
    np.testing.assert_array_equal(demonstrations.action.min(axis=0), [12, 25])
    np.testing.assert_array_equal(demonstrations.action.max(axis=0), [511, 511])
