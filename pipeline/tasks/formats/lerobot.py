"""Read the numbers of a LeRobotDataset v3.0 or v2.1 (Cadene et al. 2024), a folder of parquet and JSON files.

``meta/info.json`` lists the recorded features, their rate and the paths of the files. In v3.0 a parquet file holds many
episodes, listed in ``meta/episodes/``. In v2.1 each episode has its own file, listed in ``meta/episodes.jsonl``. The
column ``episode_index`` assigns rows to episodes. LeRobot itself is not needed; it cannot be installed with this
project's torch.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.tasks.formats.recording import Array, Clip, Feature, Recording, Rows, one_line
from pipeline.utils.errors import UserError

INFO = Path("meta", "info.json")
VERSIONS = ("v2.1", "v3.0")
EPISODE = "episode_index"

Episode = tuple[int, int, Path]
"""Index, number of steps, and the file that holds them."""


def open_lerobot(path: Path) -> Recording:
    """Open the data set in the folder ``path``; its cameras' videos may be absent.

    Raises:
        UserError: a file of ``meta`` is absent, damaged or half-written; the version is another one; the numbers of
            episodes disagree.
    """
    info = _info(path)
    legacy = info["codebase_version"] == "v2.1"
    features = {key: _feature(path, key, feature) for key, feature in info["features"].items()}
    episodes = list(_legacy_episodes(path, info) if legacy else _episodes(path, info))
    if len(episodes) != info["total_episodes"]:
        told = info["total_episodes"]
        raise UserError(
            f"{path}: {INFO} says total_episodes {told}, but meta lists {len(episodes)}; it is half written"
        )
    table = cache(partial(_grouped, features))
    names = {index: f"{file}: episode {index}" for index, _, file in episodes}
    statistics = path / "meta" / ("episodes_stats.jsonl" if legacy else "stats.json")
    return Recording(
        path,
        "lerobot",
        f"LeRobotDataset {info['codebase_version']}",
        features,
        {names[index]: partial(_rows, table, index, length, file) for index, length, file in episodes},
        one_by_one=legacy,
        rate=float(info["fps"]),
        facts={name: text for name, text in (("robot", info.get("robot_type")), ("tasks", _tasks(path))) if text},
        limits=_limits(statistics, features),
        statistics=statistics,
        clips=partial(_legacy_clips if legacy else _clips, path, info, names),
    )


def _info(path: Path) -> dict[str, Any]:
    info = _json(path / INFO)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise UserError(f"{path / INFO}: codebase_version is {version!r}, must be {' or '.join(VERSIONS)}")
    for key, kind in (("features", dict), ("fps", (int, float)), ("data_path", str), ("total_episodes", int)):
        if not isinstance(info.get(key), kind):
            raise UserError(f"{path / INFO}: {key} is {info.get(key)!r}, which is no description of a LeRobotDataset")
    return info


def _json(file: Path, text: str | None = None) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8") if text is None else text)
    except FileNotFoundError:
        raise UserError(f"{file}: is absent; a LeRobotDataset has it") from None
    except ValueError as error:
        raise UserError(f"{file}: is no JSON, damaged or half written: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: holds {type(value).__name__}, expected a JSON object")
    return value


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines."""
    if not file.is_file():
        raise UserError(f"{file}: is absent; a LeRobotDataset has it")
    for line in filter(str.strip, file.read_text(encoding="utf-8").splitlines()):
        yield _json(file, line)


def _feature(path: Path, key: str, feature: Any) -> Feature:
    try:
        return Feature(tuple(map(int, feature["shape"])), str(feature["dtype"]), tuple(_names(feature.get("names"))))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / INFO}: features.{key} is {feature!r}, expected dtype, shape and names") from error


def _names(names: Any) -> Iterator[str]:
    """Yield the names of components from a list of names, or from lists of names by group."""
    for group in names.values() if isinstance(names, Mapping) else [names]:
        yield from map(str, group or ())


def _episodes(path: Path, info: Mapping[str, Any]) -> Iterator[Episode]:
    folder = path / "meta" / "episodes"
    files = sorted(folder.glob("*/*.parquet"))
    if not files:
        raise UserError(f"{folder}: holds no parquet file, expected the list of episodes in chunk-000/file-000.parquet")
    columns = (EPISODE, "length", "data/chunk_index", "data/file_index")
    listed = [row for file in files for row in zip(*_columns(file, columns), strict=True)]
    for index, length, chunk, number in sorted(listed):
        yield int(index), int(length), _data_file(path, info, chunk_index=int(chunk), file_index=int(number))


def _legacy_episodes(path: Path, info: Mapping[str, Any]) -> Iterator[Episode]:
    file = path / "meta" / "episodes.jsonl"
    for line in _lines(file):
        try:
            index, length = int(line[EPISODE]), int(line["length"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: holds {line!r}, expected {EPISODE} and length") from error
        chunk = index // int(info.get("chunks_size", 1000))
        yield index, length, _data_file(path, info, episode_chunk=chunk, episode_index=index)


def _data_file(path: Path, info: Mapping[str, Any], **place: int) -> Path:
    return _file(path, info, "data_path", **place)


def _file(path: Path, info: Mapping[str, Any], pattern: str, **place: int | str) -> Path:
    try:
        return path / str(info[pattern]).format(**place)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        allowed, given = ", ".join(place), info.get(pattern)
        raise UserError(f"{path / INFO}: {pattern} is {given!r}, may name {allowed} only") from error


def _clips(path: Path, info: Mapping[str, Any], names: Mapping[int, str], camera: str) -> dict[str, Clip]:
    """Locate the video of each episode: file and first frame, counted from the start of the file."""
    columns = (EPISODE, *(f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")))
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    listed = [row for file in files for row in zip(*_columns(file, columns), strict=True)]
    return {
        names[int(index)]: Clip(
            _file(path, info, "video_path", video_key=camera, chunk_index=int(chunk), file_index=int(number)),
            round(float(begins) * float(info["fps"])),
        )
        for index, chunk, number, begins in listed
    }


def _legacy_clips(path: Path, info: Mapping[str, Any], names: Mapping[int, str], camera: str) -> dict[str, Clip]:
    size = int(info.get("chunks_size", 1000))
    place = {index: {"episode_chunk": index // size, "episode_index": index} for index in names}
    return {
        name: Clip(_file(path, info, "video_path", video_key=camera, **place[index]), 0)
        for index, name in names.items()
    }


def _tasks(path: Path) -> str:
    """Read the task descriptions; v3.0 stores them in parquet, as the table's index."""
    file = path / "meta" / "tasks.parquet"
    if not file.exists():
        file = file.with_suffix(".jsonl")
        return "; ".join(str(line.get("task")) for line in _lines(file)) if file.exists() else ""
    import pyarrow as pa

    table = _parquet(file)
    words = [
        column for column in table.columns if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ]
    return "; ".join(words[0].to_pylist()) if words else ""


def _limits(file: Path, features: Mapping[str, Feature]) -> dict[str, tuple[Array, Array]]:
    """Read the least and greatest value of each component from the data set's own statistics."""
    if not file.exists():
        return {}
    several = [line.get("stats", {}) for line in _lines(file)] if file.suffix == ".jsonl" else [_json(file)]
    limits: dict[str, tuple[Array, Array]] = {}
    for key in [key for key, feature in features.items() if feature.is_vector]:
        try:
            known = [stats[key] for stats in several if "min" in stats.get(key, {}) and "max" in stats[key]]
            if known:
                low, high = (np.array([np.ravel(stats[end]) for stats in known], float) for end in ("min", "max"))
                limits[key] = low.min(0), high.max(0)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file}: the statistics of {key} have no min and max of its shape") from error
    return limits


def _rows(
    table: Callable[[Path, tuple[str, ...]], Mapping[int, Rows]],
    index: int,
    length: int,
    file: Path,
    keys: Sequence[str],
) -> Rows:
    rows = table(file, tuple(keys)).get(index, {})
    found = len(next(iter(rows.values()), ()))
    if found != length:
        raise UserError(f"{file}: episode {index} has {found} rows, meta lists {length}; it is half written")
    return rows


def _grouped(features: Mapping[str, Feature], file: Path, keys: tuple[str, ...]) -> dict[int, Rows]:
    """Read the rows of each episode in ``file``: index of the episode → rows."""
    (episodes,), columns = _columns(file, [EPISODE]), _columns(file, keys, {key: features[key].shape for key in keys})
    order = np.argsort(episodes, kind="stable")
    indices, starts = np.unique(episodes[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {
        int(index): {key: column[part] for key, column in zip(keys, columns, strict=True)}
        for index, part in zip(indices, parts, strict=True)
    }


def _columns(file: Path, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]] | None = None) -> list[Array]:
    """Read columns of a parquet file, each (N, …)."""
    table = _parquet(file, names)
    absent = [name for name in names if name not in table.column_names]
    if absent:
        raise UserError(f"{file}: column {absent[0]} is absent; there are {', '.join(table.column_names)}")
    return [_numbers(file, name, table[name], (shapes or {}).get(name, ())) for name in names]


def _parquet(file: Path, columns: Sequence[str] | None = None) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        source = parquet.ParquetFile(file)
        return source.read(None if columns is None else list(columns))
    except FileNotFoundError:
        raise UserError(f"{file}: is absent, though the data set lists it; fetch it anew") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: is no whole parquet file, damaged or half written: {one_line(error)}") from error


def _numbers(file: Path, name: str, column: Any, shape: tuple[int, ...]) -> Array:
    import pyarrow as pa

    values, n_rows = column.combine_chunks(), len(column)
    while pa.types.is_nested(values.type) and hasattr(values, "flatten") and not pa.types.is_struct(values.type):
        values = values.flatten()
    flat = values.to_numpy(zero_copy_only=False)
    if flat.dtype.kind not in "biuf" or flat.size != n_rows * int(np.prod(shape)):
        raise UserError(
            f"{file}: column {name} is {column.type} with {flat.size} values in {n_rows} rows, expected {shape}"
        )
    return flat.reshape(n_rows, *shape)
