"""Robomimic files: written files are read by robomimic and this project; invalid ones are refused."""

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.experts.episode import ExpertEpisode
from pipeline.tasks.robomimic.actions import absolute_actions, file_actions, policy_actions
from pipeline.tasks.robomimic.env import OBJECT_DIM, STATE_DIM, arm_poses, observation_keys
from pipeline.tasks.robomimic.files import read_robomimic, write_robomimic
from pipeline.tasks.robomimic.rotation import axis_angle_from_matrix, matrix_from_axis_angle
from pipeline.tasks.robomimic.simulator import ARMS, Task, env_arguments
from pipeline.utils.errors import UserError

MODEL = '<mujoco model="base">\n  <mesh file="/opt/robosuite/robosuite/models/assets/a.stl"/>\n</mujoco>\n'


def episode(task: Task, steps: int, seed: int = 0) -> ExpertEpisode:
    """Return an episode of random numbers, with actions around the arms' poses."""
    generator = np.random.default_rng(seed)
    observations = generator.normal(size=(steps, STATE_DIM[task]))
    actions = generator.normal(size=(steps, ARMS[task], 7))
    for arm in range(ARMS[task]):
        pose = observations[:, OBJECT_DIM[task] + 9 * arm :][:, :9]
        pose[:, 2] = 1 + 0.1 * pose[:, 2]
        pose[:, 3:7] /= np.linalg.norm(pose[:, 3:7], axis=1, keepdims=True)
        actions[:, arm, :3] = pose[:, :3] + 0.02 * actions[:, arm, :3]
    turns = axis_angle_from_matrix(matrix_from_axis_angle(actions[..., 3:6]))  # at most π
    actions[..., 3:6] = turns
    return ExpertEpisode(
        seed=seed,
        observations=observations,
        actions=actions.reshape(steps, -1),
        success=True,
        score=1.0,
        states=generator.normal(size=(steps, 32)),
        extras={"model_file": MODEL},
    )


def lift_file(folder: Path, change: Callable[[Any], None] | None = None, **settings: Any) -> Path:
    """Write two episodes of Lift, with ``settings`` changed by dotted key, and apply ``change`` to the open file."""
    path = folder / "lift.hdf5"
    write_robomimic(path, "lift", [episode("lift", 5), episode("lift", 7, 1)])
    with h5py.File(path, "r+") as file:
        arguments = json.loads(file["data"].attrs["env_args"])
        for key, value in settings.items():
            *parents, last = key.split("__")
            holder = arguments
            for parent in parents:
                holder = holder[parent]
            holder[last] = value
        file["data"].attrs["env_args"] = json.dumps(arguments)
        if change:
            change(file)
    return path


@pytest.mark.parametrize("task", ["lift", "transport"])
def test_write_and_read_round_trip(tmp_path: Path, task: Task) -> None:
    episodes = [episode(task, steps, steps) for steps in range(3, 15)]  # demo_10 is the eleventh, not the third
    write_robomimic(tmp_path / "new" / "a.hdf5", task, episodes)
    read = read_robomimic(tmp_path / "new" / "a.hdf5", task)
    assert read.episode_ends.tolist() == np.cumsum(range(3, 15)).tolist()
    assert (read.state.dtype, read.action.dtype, read.action.shape[1]) == (np.float32, np.float32, 10 * ARMS[task])
    np.testing.assert_array_equal(read.state, np.concatenate([e.observations for e in episodes]).astype(np.float32))
    expected = np.concatenate([e.actions for e in episodes])
    np.testing.assert_allclose(policy_actions(file_actions(read.action)), policy_actions(expected), atol=1e-6)


def test_file_layout_matches_the_public_one(tmp_path: Path) -> None:
    write_robomimic(tmp_path / "a.hdf5", "transport", [episode("transport", 4), episode("transport", 6)])
    with h5py.File(tmp_path / "a.hdf5") as file:
        data = file["data"]
        assert list(file) == ["data"] and list(data) == ["demo_0", "demo_1"] and data.attrs["total"] == 10
        assert json.loads(data.attrs["env_args"]) == env_arguments("transport")
        demo = data["demo_1"]
        assert demo.attrs["num_samples"] == 6
        assert (
            demo.attrs["model_file"] == '<mujoco model="base"><mesh file="robosuite/models/assets/a.stl"/></mujoco>\n'
        )
        shapes = {name: (demo[name].shape, demo[name].dtype.str) for name in ("actions", "states", "rewards", "dones")}
        assert shapes == {
            "actions": ((6, 14), "<f8"), "states": ((6, 32), "<f8"), "rewards": ((6,), "<f8"), "dones": ((6,), "<i8"),
        }  # fmt: skip
        made = episode("transport", 6)
        np.testing.assert_array_equal(demo["actions"], made.actions)
        np.testing.assert_array_equal(demo["states"][0], made.states[0])  # type: ignore[index]
        np.testing.assert_array_equal(np.float32(demo["states"]), np.float32(made.states))
        assert demo["rewards"][:].tolist() == demo["dones"][:].tolist() == [0] * 5 + [1]
        assert {key: demo["obs"][key].shape for key in demo["obs"]} == {
            "object": (6, 41),
            **{f"robot{i}_{key}": (6, n) for i in (0, 1) for key, n in (("eef_pos", 3), ("eef_quat", 4))},
            **{f"robot{i}_gripper_qpos": (6, 2) for i in (0, 1)},
        }


def test_equal_episodes_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.hdf5", "b.hdf5"):
        write_robomimic(tmp_path / name, "can", [episode("can", 9)])
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def test_an_episode_without_states_is_not_written(tmp_path: Path) -> None:
    made = episode("lift", 3)
    bare = ExpertEpisode(made.seed, made.observations, made.actions, success=True, score=1.0)
    with pytest.raises(ValueError, match="demo_0"):
        write_robomimic(tmp_path / "a.hdf5", "lift", [bare])
    assert list(tmp_path.iterdir()) == []


def test_robomimic_reads_written_files(tmp_path: Path) -> None:
    from robomimic.utils import file_utils, obs_utils
    from robomimic.utils.dataset import SequenceDataset

    path = lift_file(tmp_path)
    keys = list(observation_keys("lift"))
    assert file_utils.get_env_metadata_from_dataset(str(path)) == env_arguments("lift")
    with redirect_stdout(StringIO()):
        obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": keys}}])
        shapes = file_utils.get_shape_metadata_from_dataset(str(path), all_obs_keys=keys)
        served = SequenceDataset(str(path), keys, ("actions", "rewards", "dones"), load_next_obs=False)
    assert shapes["ac_dim"] == 7 and dict(shapes["all_shapes"]) == {k: [n] for k, n in observation_keys("lift").items()}
    assert len(served) == 12
    written = np.concatenate([episode("lift", 5).actions, episode("lift", 7, 1).actions])
    np.testing.assert_array_equal([served[i]["actions"][0] for i in range(12)], written)
    observed = [np.concatenate([served[i]["obs"][key][0] for key in keys]) for i in range(12)]
    np.testing.assert_array_equal(np.array(observed, dtype=np.float32), read_robomimic(path, "lift").state)


def test_relative_actions_become_absolute_and_absolute_ones_stay(tmp_path: Path) -> None:
    episodes = [episode("lift", 5), episode("lift", 7, 1)]
    relative = [np.random.default_rng(i).uniform(-1.2, 1.2, (len(e.actions), 7)) for i, e in enumerate(episodes)]
    relative[0][1:3, 3:6] = 0

    def make_relative(file: Any) -> None:
        for i, actions in enumerate(relative):
            file[f"data/demo_{i}/actions"][:] = actions

    relative_settings: Any = {"env_kwargs__controller_configs__control_delta": True}
    converted = read_robomimic(lift_file(tmp_path, make_relative, **relative_settings), "lift")
    expected = [
        absolute_actions(actions, *arm_poses(e.observations, "lift"))
        for actions, e in zip(relative, episodes, strict=True)
    ]
    np.testing.assert_allclose(converted.action, policy_actions(np.concatenate(expected)), atol=1e-6)
    np.testing.assert_array_equal(converted.action[1, 3:9], converted.action[2, 3:9])
    # diffusion_policy's files with absolute actions have the settings of relative ones
    kept = read_robomimic(lift_file(tmp_path, **relative_settings), "lift")
    np.testing.assert_array_equal(kept.action, read_robomimic(lift_file(tmp_path), "lift").action)


@pytest.mark.parametrize("version", ["1.2.0", "1.3.2", "1.4.1", None])
def test_compatible_versions_are_read(tmp_path: Path, version: str | None) -> None:
    assert read_robomimic(lift_file(tmp_path, env_version=version, env_kwargs__robots="Panda"), "lift").n_episodes == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("env_version", "1.5.1", r"env_args\.env_version is '1\.5\.1', must be 1\.2\.0 to 1\.4\.1"),
        ("env_version", "0.3.0", r"env_args\.env_version is '0\.3\.0'"),
        ("env_version", "new", r"env_args\.env_version is 'new'"),
        ("env_name", "Stack", r"env_args\.env_name is 'Stack', must be 'Lift'"),
        ("type", 2, r"env_args\.type is 2, must be 1"),
        ("env_kwargs", [], r"env_args\.env_kwargs is \[\]"),
        ("env_kwargs__robots", ["Sawyer"], r"env_args\.env_kwargs\.robots is \['Sawyer'\], must be \['Panda'\]"),
        ("env_kwargs__control_freq", 10, r"control_freq is 10, must be 20"),
        ("env_kwargs__controller_configs", None, r"controller_configs is None"),
        ("env_kwargs__controller_configs__type", "JOINT_VELOCITY", r"controller_configs\.type is 'JOINT_VELOCITY'"),
        ("env_kwargs__controller_configs__kp", 300, r"controller_configs\.kp is 300, must be 150"),
        ("env_kwargs__env_configuration", "bimanual", r"env_configuration is 'bimanual'"),
    ],
)
def test_incompatible_settings_are_refused_by_name(tmp_path: Path, key: str, value: Any, message: str) -> None:
    refused(lift_file(tmp_path, **{key: value}), message)


def without(name: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]

    return change


def replaced(name: str, array: np.ndarray) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file[name] = array

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("data"), r"has no group data with attribute env_args"),
        (lambda file: [file["data"].pop(name) for name in list(file["data"])], r"holds no episodes"),
        (lambda file: file["data"].attrs.pop("env_args"), r"attribute env_args"),
        (lambda file: file["data"].attrs.modify("env_args", "{"), r"env_args of group data is no JSON"),
    ],
)
def test_incomplete_file_is_refused(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    refused(lift_file(tmp_path, change), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("data/demo_0/actions"), r"data set data/demo_0/actions is missing"),
        (without("data/demo_0/obs"), r"data set data/demo_0/obs/object is missing"),
        (without("data/demo_0/obs/object"), r"data set data/demo_0/obs/object is missing"),
        (
            replaced("data/demo_0/actions", np.zeros((5, 10))),
            r"demo_0/actions is float64 \(5, 10\), expected .*\(T, 7\)",
        ),
        (replaced("data/demo_0/obs/robot0_eef_pos", np.zeros((4, 3))), r"robot0_eef_pos has 4 rows, expected 5"),
        (replaced("data/demo_0/actions", np.zeros((5, 7), int)), r"demo_0/actions is int64"),
        (replaced("data/demo_0/obs/object", np.full((5, 10), np.nan)), r"obs/object holds NaN or infinity.*row 0"),
    ],
)
def test_invalid_episode_is_skipped_and_a_file_without_valid_ones_is_refused(
    tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    path = lift_file(tmp_path, change)
    only_the_other(path, message)
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"]
    refused(path, message)


def test_truncated_foreign_and_absent_files_are_refused(tmp_path: Path) -> None:
    path = lift_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "is not a whole HDF5 file")
    path.write_bytes(b"PK" + bytes(1000))
    refused(path, "is not a whole HDF5 file")
    path.unlink()
    refused(path, "does not exist; expected Robomimic demonstrations of lift")


def test_damaged_episode_is_skipped(tmp_path: Path) -> None:
    path = lift_file(tmp_path)
    with h5py.File(path) as file:
        chunk = file["data/demo_0/actions"].id.get_chunk_info(0)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(damaged)
    only_the_other(path, r"data/demo_0 cannot be read: Can't")


def only_the_other(path: Path, message: str) -> None:
    """Check that reading skips the first of ``lift_file``'s two episodes."""
    with pytest.warns(UserWarning, match=rf"lift\.hdf5: left out 1 of 2 episodes, the first since .*{message}"):
        read = read_robomimic(path, "lift")
    np.testing.assert_array_equal(read.state, episode("lift", 7, 1).observations.astype(np.float32))


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_robomimic(path, "lift")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
