"""Kitchen demonstrations: all public formats, without padding, and a one-line error for every defect."""

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.tasks.kitchen.files import ACTIONS, MASK, OBSERVATIONS, read_kitchen, write_kitchen
from pipeline.utils.errors import UserError

Array = NDArray[Any]
Episodes = list[tuple[Array, Array]]


def made_up(lengths: list[int], seed: int = 0) -> Episodes:
    """Return episodes of a smoothly moving arm, float32: observations (T, 60) with a masked goal, actions (T, 9)."""
    generator = np.random.default_rng(seed)
    episodes = []
    for length in lengths:
        positions = generator.normal(size=30) + 0.02 * generator.normal(size=(length, 30)).cumsum(axis=0)
        observations = np.concatenate([positions, np.zeros((length, 30))], axis=1).astype(np.float32)
        episodes.append((observations, generator.uniform(-1, 1, (length, 9)).astype(np.float32)))
    return episodes


def sequences(episodes: Episodes, padding: float = 0.0) -> dict[str, Array]:
    """Return the arrays of the public files: steps first, float64, ``padding`` after each episode."""
    longest = max(len(actions) for _, actions in episodes)
    arrays = {
        OBSERVATIONS: np.full((longest, len(episodes), 60), padding),
        ACTIONS: np.full((longest, len(episodes), 9), padding),
        MASK: np.zeros((longest, len(episodes))),
    }
    for i, (observations, actions) in enumerate(episodes):
        length = len(actions)
        for name, values in ((OBSERVATIONS, observations), (ACTIONS, actions), (MASK, np.ones(length))):
            arrays[name][:length, i] = values
    return arrays


def save(folder: Path, arrays: dict[str, Array]) -> Path:
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / name, array)
    return folder


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def log(positions: Array, controls: Array, nq: int = 30, name: bytes = b"franka", nmocap: int = 1) -> bytes:
    """Return a relay-policy log: records of positions (R, nq) and controls (R, nu), 2 ms apart."""
    n, nu = len(positions), controls.shape[1]
    time = 0.002 * np.arange(n)[:, None]
    records = np.concatenate([time, positions, np.zeros((n, 29)), controls, np.full((n, 7 * nmocap + 2 + 1), 9.0)], 1)
    return struct.pack("<7i", nq, 29, nu, nmocap, 2, 1, len(name)) + name + records.astype("<f4").tobytes()


def write_minari(root: Path, episodes: Episodes) -> Path:
    """Write a FrankaKitchen-v1 data set with minari; of its 59 numbers those that are no positions are 7."""
    import gymnasium
    from minari import __version__
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    (root / "data").mkdir(parents=True)
    box = gymnasium.spaces.Box
    space = gymnasium.spaces.Dict({"observation": box(-np.inf, np.inf, (59,), np.float64)})
    storage = MinariStorage.new(root / "data", space, box(-1, 1, (9,), np.float64), data_format="hdf5")
    storage.update_metadata({"dataset_id": "D4RL/kitchen/mixed-v2", "minari_version": __version__})
    buffers = []
    for i, (observations, actions) in enumerate(episodes):
        length = len(actions)
        sensed = np.full((length + 1, 59), 7.0)
        sensed[:length, :9], sensed[:length, 18:39] = observations[:, :9], observations[:, 9:30]
        none = [False] * length
        buffers.append(EpisodeBuffer(i, None, None, {"observation": list(sensed)}, list(actions), none, none, none))
    storage.update_episodes(buffers)
    return root


def check(path: Path, episodes: Episodes) -> None:
    demonstrations = read_kitchen(path)
    assert demonstrations.state.dtype == demonstrations.action.dtype == np.float32
    assert demonstrations.n_episodes == len(episodes)
    for i, (observations, actions) in enumerate(episodes):
        steps = demonstrations.episode(i)
        np.testing.assert_array_equal(demonstrations.state[steps], observations)
        np.testing.assert_array_equal(demonstrations.action[steps], actions)


def refuse(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_kitchen(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("padding", [0.0, 5.0, np.nan])
@pytest.mark.parametrize("container", [lambda folder: folder, zipped])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.bool_])
def test_sequences_are_read_without_padding(
    tmp_path: Path, padding: float, container: Callable[[Path], Path], dtype: type
) -> None:
    episodes = made_up([7, 12, 3])
    arrays = sequences(episodes, padding)
    arrays[MASK] = arrays[MASK].astype(dtype)
    check(container(save(tmp_path / "kitchen", arrays)), episodes)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(2, 12), min_size=1, max_size=6), swapped=st.booleans(), seed=st.integers(0, 99))
def test_time_axis_is_detected_for_any_lengths(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], swapped: bool, seed: int
) -> None:
    episodes = made_up(lengths, seed)
    arrays = sequences(episodes, padding=100.0)
    if swapped:
        arrays = {name: array.swapaxes(0, 1) for name, array in arrays.items()}
    check(save(tmp_path_factory.mktemp("kitchen") / "sequences", arrays), episodes)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2, 12), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_write_and_read_round_trip(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int) -> None:
    episodes, folder = made_up(lengths, seed), tmp_path_factory.mktemp("kitchen")
    for name in ("a.zip", "b.zip"):
        write_kitchen(folder / name, [o for o, _ in episodes], [a for _, a in episodes])
    check(folder / "a.zip", episodes)
    assert (folder / "a.zip").read_bytes() == (folder / "b.zip").read_bytes()
    with zipfile.ZipFile(folder / "a.zip") as archive:
        assert archive.namelist() == [OBSERVATIONS, ACTIONS, MASK]
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        with archive.open(MASK) as file:
            np.testing.assert_array_equal(np.load(file).sum(axis=0), lengths)  # steps first


def test_invalid_episodes_are_not_written(tmp_path: Path) -> None:
    observations, actions = made_up([4])[0]
    for bad in (([], []), ([observations], [actions[:3]]), ([observations[:, :30]], [actions]), ([observations], [])):
        with pytest.raises(ValueError, match="episodes must be"):
            write_kitchen(tmp_path / "a.zip", *bad)
    assert not list(tmp_path.iterdir())


def test_an_unmasked_goal_is_masked(tmp_path: Path) -> None:
    episodes = made_up([5, 6])
    arrays = sequences(episodes)
    arrays[OBSERVATIONS][..., 30:] = 0.7
    check(save(tmp_path / "kitchen", arrays), episodes)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (OBSERVATIONS, lambda _: None, "observations_seq.npy is missing, expected once"),
        (MASK, lambda _: None, "existence_mask.npy is missing"),
        (OBSERVATIONS, lambda a: a[..., :59], r"observations_seq.npy has shape \(9, 3, 59\), expected \(T, N, 60\)"),
        (OBSERVATIONS, lambda a: a.astype(int), "observations_seq.npy has dtype int64"),
        (ACTIONS, lambda a: a[:, :2], r"actions_seq.npy has shape \(9, 2, 9\), observations_seq.npy \(9, 3, 60\)"),
        (ACTIONS, lambda a: a[0], r"actions_seq.npy has shape \(3, 9\), expected \(T, N, 9\)"),
        (MASK, lambda a: a[:8], r"existence_mask.npy has shape \(8, 3\)"),
        (MASK, lambda a: a[..., None], r"existence_mask.npy has shape \(9, 3, 1\)"),
        (MASK, lambda a: a * 0.5, "existence_mask.npy must hold 0 and 1 only"),
        (MASK, lambda a: a.astype(str), "existence_mask.npy must hold 0 and 1 only"),
        (MASK, lambda a: np.where(np.eye(9, 3), 0, a), "marks steps after unmarked ones"),
        (MASK, lambda a: a * [1, 0, 1], "episode 1 has no steps"),
        (ACTIONS, lambda a: np.where(np.arange(9)[:, None, None] == 2, np.nan, a), "episode 0 holds NaN.*step 2"),
        (OBSERVATIONS, lambda a: a * np.inf, "episode 0 holds NaN or infinity, first at step 0"),
        (OBSERVATIONS, lambda a: a.astype(object), "observations_seq.npy: cannot be read: Object arrays"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_each_defect_of_sequences_gives_a_one_line_error(
    tmp_path: Path, name: str, change: Callable[[Array], Array | None], message: str
) -> None:
    arrays = sequences(made_up([4, 9, 6]))
    changed = change(arrays.pop(name))
    if changed is not None:
        arrays[name] = changed
    refuse(save(tmp_path / "kitchen", arrays), message)


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "kitchen", sequences(made_up([4, 9])))
    archive = zipped(folder)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-100])
    refuse(archive, "neither a folder nor a whole zip file")
    flipped = bytearray(whole)
    flipped[400] ^= 255
    archive.write_bytes(flipped)
    refuse(archive, "kitchen/.*_.*npy: cannot be read")
    cut = folder / ACTIONS
    cut.write_bytes(cut.read_bytes()[:-50])
    refuse(folder, f"{ACTIONS}: cannot be read")
    cut.write_bytes(b"")
    refuse(folder, f"{ACTIONS}: cannot be read")
    refuse(tmp_path / "absent", "does not exist")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "holds no Kitchen demonstrations; expected a folder or zip with observations_seq")


def test_two_sets_in_one_folder_are_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    for name in ("a", "b"):
        save(tmp_path / "both" / name, sequences(made_up([3])))
    refuse(tmp_path / "both", r"observations_seq.npy occurs 2 times \(a/observations_seq.npy, b/observations_seq.npy\)")


@pytest.mark.parametrize("ghost", [0, 9])
@pytest.mark.parametrize("container", [lambda folder: folder, zipped])
def test_relay_policy_logs_become_control_steps(tmp_path: Path, container: Callable[[Path], Path], ghost: int) -> None:
    generator, episodes = np.random.default_rng(0), []
    folder = tmp_path / "friday_microwave_kettle"
    folder.mkdir()
    for name, n_records in (("b", 40 * 5 + 1), ("a", 40 * 3 + 17)):
        positions = generator.normal(size=(n_records, 30)).astype(np.float32)
        controls = (positions[:, :9] + generator.uniform(-0.2, 0.2, (n_records, 9))).astype(np.float32)
        logged = np.insert(positions, [9] * ghost, 50.0, axis=1)
        (folder / f"kitchen_{name}.mjl").write_bytes(log(logged, controls, nq=30 + ghost))
        steps = np.arange(0, n_records, 40)[:-1]
        velocity = (controls[steps] - positions[steps, :9]) / 0.08
        episodes.append((positions[steps], np.clip(velocity / 2, -0.999, 0.999)))
    (folder / "._kitchen_a.mjl").write_bytes(b"left by macOS")
    demonstrations = read_kitchen(container(folder))
    np.testing.assert_array_equal(demonstrations.episode_ends, [3, 8])  # by name: a, then b
    expected = [np.concatenate(parts) for parts in zip(*reversed(episodes), strict=True)]
    np.testing.assert_array_equal(demonstrations.state[:, :30], expected[0])
    assert (demonstrations.state[:, 30:] == 0).all()
    np.testing.assert_allclose(demonstrations.action, expected[1], rtol=0, atol=2e-6)
    assert (np.abs(demonstrations.action) == np.float32(0.999)).any(), "some were clipped"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:20], "20 bytes, a header alone has 28"),
        (lambda data: data[:34], "holds no records"),
        (lambda data: data[:-4], r"no whole number of records of \d+ bytes"),
        (lambda data: data[:-3], "no whole number of records"),
        (lambda data: struct.pack("<i", -1) + data[4:], "negative sizes"),
        (lambda _: log(np.zeros((90, 22)), np.zeros((90, 9)), nq=22), "logs 22 positions and 9 controls"),
        (lambda _: log(np.zeros((90, 30)), np.zeros((90, 7))), "logs 30 positions and 7 controls"),
        (lambda _: log(np.zeros((39, 30)), np.zeros((39, 9))), "has no steps"),
        (lambda _: log(np.full((90, 30), np.nan), np.zeros((90, 9))), "holds NaN or infinity, first at step 0"),
    ],
)
def test_invalid_logs_are_skipped_and_a_folder_without_valid_ones_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    whole = log(np.zeros((90, 30)), np.zeros((90, 9)))
    for name in "ac":
        (folder / f"{name}.mjl").write_bytes(whole)
    for name in "bd":
        (folder / f"{name}.mjl").write_bytes(damage(whole))
    for container in (folder, zipped(folder)):
        with pytest.warns(UserWarning, match=rf": left out 2 of 4 episodes, the first since .*/b\.mjl.*{message}"):
            assert read_kitchen(container).episode_ends.tolist() == [2, 4]
    for name in "ac":
        (folder / f"{name}.mjl").unlink()
    refuse(folder, rf"/b\.mjl.*{message}")


def test_damaged_log_in_an_archive_is_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.mjl").write_bytes(log(np.zeros((90, 30)), np.zeros((90, 9))))
    archive = zipped(folder)
    with zipfile.ZipFile(archive) as opened:
        start = opened.getinfo("logs/b.mjl").header_offset + 60
    damaged = bytearray(archive.read_bytes())
    damaged[start : start + 20] = bytes(20)
    archive.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"left out 1 of 2 episodes, the first since .*/logs/b\.mjl: cannot be read"):
        assert read_kitchen(archive).n_episodes == 1


def test_minari_data_set_is_read(tmp_path: Path) -> None:
    episodes = made_up([5, 2, 8])
    root = write_minari(tmp_path / "mixed-v2", episodes)
    check(root, episodes)
    check(root / "data", episodes)


def test_each_defect_of_a_minari_data_set_gives_a_one_line_error(tmp_path: Path) -> None:
    import h5py

    root = write_minari(tmp_path / "mixed-v2", made_up([5, 2]))
    file, metadata = root / "data" / "main_data.hdf5", root / "data" / "metadata.json"
    whole, described = file.read_bytes(), metadata.read_text(encoding="utf-8")
    file.write_bytes(whole[: len(whole) // 2])
    refuse(root, "main_data.hdf5: is no whole Minari data set of FrankaKitchen-v1: .*truncated")
    file.write_bytes(whole)
    with h5py.File(file, "a") as store:
        del store["episode_1/actions"]
        store["episode_1/actions"] = np.zeros((4, 9))
    with pytest.warns(
        UserWarning, match=r"left out 1 of 2 .*episode 1 has observations \(3, 59\) and actions \(4, 9\)"
    ):
        assert read_kitchen(root).episode_ends.tolist() == [5]
    with h5py.File(file, "a") as store:
        store["episode_0/actions"][1, 1] = np.nan
    refuse(root, "episode 0 holds NaN or infinity, first at step 1")
    file.write_bytes(whole)
    metadata.write_text(json.dumps(json.loads(described) | {"minari_version": "9.9"}), encoding="utf-8")
    refuse(root, "does not support the dataset generated by Minari 9.9")
    metadata.unlink()
    refuse(root, "main_data.hdf5: is no whole Minari data set")
