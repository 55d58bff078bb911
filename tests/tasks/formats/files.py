"""Write the same episodes in every supported format."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium
import h5py
import imageio.v2 as iio
import minari
import numpy as np
import pyarrow as pa
import pytest
import zarr
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray
from pyarrow import parquet
from zarr.storage import ZipStore

from pipeline.tasks.formats.lerobot_writer import write_lerobot

Arrays = Mapping[str, NDArray[Any]]
LENGTHS = (7, 12, 5)
RATE = 10.0


def episodes(lengths: Sequence[int] = LENGTHS) -> list[dict[str, NDArray[Any]]]:
    """Return random episodes: ``state`` (T, 4) and ``action`` (T, 2), float32."""
    generator = np.random.default_rng(0)
    return [
        {key: generator.normal(size=(length, dim)).astype(np.float32) for key, dim in (("state", 4), ("action", 2))}
        for length in lengths
    ]


def write_npz(folder: Path, given: Sequence[Arrays]) -> Path:
    arrays = {key: np.concatenate([episode[key] for episode in given]) for key in given[0]}
    np.savez(folder / "set.npz", **arrays, episode_ends=_ends(given))
    return folder / "set.npz"


def write_zarr(
    folder: Path, given: Sequence[Arrays], version: Literal[2, 3] = 2, shard: int | None = None, zipped: bool = False
) -> Path:
    path = folder / ("set.zarr.zip" if zipped else "set.zarr")
    store = ZipStore(path, mode="w") if zipped else path
    group = zarr.open_group(store, mode="w", zarr_format=version)
    for key in given[0]:
        array = np.concatenate([episode[key] for episode in given])
        shards = None if shard is None else (shard, *array.shape[1:])
        group.create_array(f"data/{key}", data=array, chunks=(10, *array.shape[1:]), shards=shards)
    group.create_array("meta/episode_ends", data=_ends(given))
    if isinstance(store, ZipStore):
        store.close()
    return path


def write_robomimic(folder: Path, given: Sequence[Arrays], **recipe: Any) -> Path:
    with h5py.File(folder / "set.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}} | recipe
        )
        for i, episode in enumerate(given):
            data[f"demo_{i}/obs/state"] = episode["state"]
            data[f"demo_{i}/actions"] = episode["action"]
    return folder / "set.hdf5"


def write_minari(folder: Path, given: Sequence[Arrays], data_format: str = "hdf5") -> Path:
    """Write with minari; the observation after an episode's last action is all 9."""
    high = np.full(given[0]["state"].shape[1], np.inf, np.float32)
    buffers = [
        EpisodeBuffer(
            id=i,
            observations={"pose": np.concatenate([episode["state"], np.full_like(episode["state"][:1], 9)])},
            actions=episode["action"],
            rewards=[0.0] * len(episode["action"]),
            terminations=[False] * len(episode["action"]),
            truncations=[False] * len(episode["action"]),
        )
        for i, episode in enumerate(given)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        minari.create_dataset_from_buffers(
            "mine/set-v0",
            buffers,
            env="Reacher-v5",
            observation_space=gymnasium.spaces.Dict({"pose": gymnasium.spaces.Box(-high, high)}),
            action_space=gymnasium.spaces.Box(-1, 1, given[0]["action"].shape[1:]),
            data_format=data_format,
        )
    return folder / "mine" / "set-v0"


def write_v3(folder: Path, given: Sequence[Arrays]) -> Path:
    renamed = [{"observation.state": episode["state"], "action": episode["action"]} for episode in given]
    write_lerobot(folder / "set", renamed, RATE, "push it", "arm", {"action": ["x", "y"]})
    return folder / "set"


def write_v2(folder: Path, given: Sequence[Arrays]) -> Path:
    """Write LeRobotDataset v2.1, converted from v3.0: a file for each episode, lists as JSON lines."""
    path = write_v3(folder, given)
    info = json.loads((path / "meta/info.json").read_text(encoding="utf-8"))
    info["codebase_version"] = "v2.1"
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["features"]["action"]["names"] = {"motors": ["x", "y"]}
    (path / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")
    whole = parquet.ParquetFile(path / "data/chunk-000/file-000.parquet")
    listed = parquet.read_table(path / "meta/episodes").to_pylist()
    for i in range(whole.num_row_groups):
        parquet.write_table(whole.read_row_group(i), path / f"data/chunk-000/episode_{i:06d}.parquet")
    (path / "data/chunk-000/file-000.parquet").unlink()
    shutil.rmtree(path / "meta/episodes")
    (path / "meta/stats.json").unlink()
    (path / "meta/tasks.parquet").unlink()
    write_lines(path / "meta/tasks.jsonl", [{"task_index": 0, "task": "push it"}])
    write_lines(
        path / "meta/episodes.jsonl", [{k: row[k] for k in ("episode_index", "tasks", "length")} for row in listed]
    )
    statistics = [
        {key: {end: row[f"stats/{key}/{end}"] for end in ("min", "max")} for key in ("observation.state", "action")}
        for row in listed
    ]
    write_lines(
        path / "meta/episodes_stats.jsonl", [{"episode_index": i, "stats": each} for i, each in enumerate(statistics)]
    )
    return path


CAMERA = "observation.images.top"
V3_VIDEO, V2_VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4", f"videos/chunk-000/{CAMERA}/episode_{{:06d}}.mp4"


def with_camera(folder: Path, write: Callable[..., Path], given: Sequence[Arrays] | None = None) -> Path:
    """Write a LeRobotDataset that declares a camera, without videos; of v3.0 one file would have all episodes."""
    path = write(folder, episodes() if given is None else given)
    info = json.loads((path / "meta/info.json").read_text(encoding="utf-8"))
    info["features"][CAMERA] = {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]}
    v3, v2 = V3_VIDEO.replace("000", "{{{}_index:03d}}"), V2_VIDEO.replace("000", "{episode_chunk:03d}")
    info["video_path"] = (
        v3.format("chunk", "file") if write is write_v3 else v2.replace("{:06d}", "{episode_index:06d}")
    )
    info["video_path"] = info["video_path"].replace(CAMERA, "{video_key}")
    (path / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")
    listed = path / "meta/episodes/chunk-000/file-000.parquet"
    if listed.exists():
        table = parquet.read_table(listed)
        lengths = np.array(table["length"].to_pylist())
        begins = (np.cumsum(lengths) - lengths) / RATE
        for name, column in (("chunk_index", 0 * lengths), ("file_index", 0 * lengths), ("from_timestamp", begins)):
            table = table.append_column(f"videos/{CAMERA}/{name}", pa.array(column))
        parquet.write_table(table, listed)
    return path


def write_video(file: Path, shades: Sequence[float]) -> None:
    """Write a frame of 16 × 16 grey pixels for each of the shades, 0 to 255."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with iio.get_writer(file, fps=RATE, macro_block_size=1) as writer:
        for shade in shades:
            writer.append_data(np.full((16, 16, 3), shade, np.uint8))


def write_lines(file: Path, objects: Sequence[Any]) -> None:
    file.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")


def _ends(given: Sequence[Arrays]) -> NDArray[np.int64]:
    return np.cumsum([len(episode["action"]) for episode in given])


Write = Callable[[Path, Sequence[Arrays]], Path]
WRITERS: dict[str, tuple[Write, str, str, str]] = {
    "npz": (write_npz, "npz", "state", "action"),
    "zarr2": (write_zarr, "zarr", "state", "action"),
    "zarr3": (partial(write_zarr, version=3), "zarr", "state", "action"),
    "sharded": (partial(write_zarr, version=3, shard=20), "zarr", "state", "action"),
    "zarr_zip": (partial(write_zarr, zipped=True), "zarr", "state", "action"),
    "robomimic": (write_robomimic, "robomimic", "obs/state", "actions"),
    "minari_hdf5": (write_minari, "minari", "observations/pose", "actions"),
    "minari_arrow": (
        lambda folder, given: write_minari(folder, given, "arrow"),
        "minari",
        "observations/pose",
        "actions",
    ),
    "lerobot3": (write_v3, "lerobot", "observation.state", "action"),
    "lerobot2": (write_v2, "lerobot", "observation.state", "action"),
}
"""Form → its writer, the name of its format, its keys of observation and action."""
ONE_BY_ONE = ("robomimic", "minari_hdf5", "minari_arrow", "lerobot2")
