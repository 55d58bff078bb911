"""Write demonstrations as a LeRobotDataset v3.0 without cameras, which LeRobot and ``open_lerobot`` read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.tasks.fetching import replacing_path
from pipeline.tasks.formats.recording import Array

FILE = Path("chunk-000", "file-000.parquet")
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def write_lerobot(
    folder: Path,
    episodes: Sequence[Mapping[str, Array]],
    rate: float,
    task: str,
    robot: str,
    names: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write ``episodes`` to ``folder`` atomically; equal episodes give equal bytes.

    Args:
        folder: the data set; replaced if it exists.
        episodes: for each episode key → (T, D), or (T,) for one number per step. LeRobot's policies expect the keys
            ``action`` and ``observation.state``; numbers keep their type.
        rate: steps per second.
        task: description of the task, in words.
        robot: name of the robot.
        names: key → names of its D components.

    Raises:
        ValueError: there is no episode; an episode has no rows, different numbers of rows per key, or other keys, types
            or shapes than the first episode.
    """
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    features = _features(episodes, names or {})
    tables = _tables(episodes, rate)
    ends = np.cumsum([len(table["index"]) for table in tables])
    listed = [_listing(i, table, int(end), task) for i, (table, end) in enumerate(zip(tables, ends, strict=True))]
    whole = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
    info = {
        "codebase_version": "v3.0",
        "robot_type": robot,
        "total_episodes": len(tables),
        "total_frames": int(ends[-1]),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "fps": int(rate) if rate == int(rate) else rate,
        "splits": {"train": f"0:{len(tables)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": features,
    }
    with replacing_path(folder) as fresh:
        for file in (fresh / "data" / FILE, fresh / "meta" / "episodes" / FILE):
            file.parent.mkdir(parents=True)
        (fresh / "meta" / "info.json").write_text(json.dumps(info, indent=4), encoding="utf-8")
        statistics = {key: _statistics(column) for key, column in whole.items()}
        (fresh / "meta" / "stats.json").write_text(json.dumps(statistics, indent=4), encoding="utf-8")
        pd.DataFrame({"task_index": [0]}, index=pd.Index([task], name="task")).to_parquet(fresh / "meta/tasks.parquet")
        parquet.write_table(pa.Table.from_pylist(listed), fresh / "meta" / "episodes" / FILE)
        columns = [{key: _column(column) for key, column in table.items()} for table in tables]
        with parquet.ParquetWriter(fresh / "data" / FILE, pa.table(columns[0]).schema, compression="zstd") as writer:
            for table in columns:  # one row group per episode, as LeRobot writes them
                writer.write_table(pa.table(table))


def _features(episodes: Sequence[Mapping[str, Array]], names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    if not episodes:
        raise ValueError("there is no episode to write")
    shapes = {key: (array.dtype, array.shape[1:]) for key, array in episodes[0].items()}
    for i, episode in enumerate(episodes):
        if {key: (array.dtype, array.shape[1:]) for key, array in episode.items()} != shapes:
            raise ValueError(f"episode {i} has other keys, types or shapes than the first")
        if len({len(array) for array in episode.values()}) != 1 or not len(next(iter(episode.values()))):
            raise ValueError(f"episode {i} has no rows, or as many of one key as not of another")
    features = {
        key: {"dtype": str(dtype), "shape": list(shape) or [1], "names": list(names[key]) if key in names else None}
        for key, (dtype, shape) in shapes.items()
    }
    integers = ("frame_index", "episode_index", "index", "task_index")
    own = {"timestamp": "float32", **dict.fromkeys(integers, "int64")}
    return features | {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in own.items()}


def _tables(episodes: Sequence[Mapping[str, Array]], rate: float) -> list[dict[str, Array]]:
    """Make the columns of each episode, with the columns that LeRobot adds."""
    tables, start = [], 0
    for i, episode in enumerate(episodes):
        frame = np.arange(len(next(iter(episode.values()))))
        index = {"frame_index": frame, "episode_index": np.full_like(frame, i), "index": start + frame}
        time = {"timestamp": (frame / rate).astype(np.float32)}
        tables.append({**episode, **time, **index, "task_index": np.zeros_like(frame)})
        start += len(frame)
    return tables


def _listing(i: int, table: Mapping[str, Array], end: int, task: str) -> dict[str, Any]:
    """Make the row of ``meta/episodes`` for episode ``i``: its location and its statistics."""
    length = len(table["index"])
    place = {"episode_index": i, "tasks": [task], "length": length, "data/chunk_index": 0, "data/file_index": 0}
    place |= {"dataset_from_index": end - length, "dataset_to_index": end}
    statistics = {
        f"stats/{key}/{name}": value for key, column in table.items() for name, value in _statistics(column).items()
    }
    return {**place, **statistics, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}


def _statistics(column: Array) -> dict[str, list[Any]]:
    rows = column.reshape(len(column), -1)
    values = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0, np.float64), "std": rows.std(0, np.float64)}
    quantiles = {f"q{round(100 * q):02d}": np.quantile(rows.astype(np.float64), q, axis=0) for q in QUANTILES}
    numbers = {name: value.tolist() for name, value in (values | quantiles).items()}
    return {**numbers, "count": [len(rows)]}


def _column(column: Array) -> Any:
    import pyarrow as pa

    flat = pa.array(column.reshape(-1))
    return flat if column.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
