"""Describe the data sets and models of a stage for MLflow, from file headers alone."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.settings.names import from_stored
from pipeline.utils.provenance import hash_of

DIGEST = 36
"""Length of a data set's digest in MLflow."""
_POLICY, _RESIDUAL, _IMAGES = "flowtune", "flowtune_residual", "flowtune_images"

Digests = Mapping[Path, str]
"""SHA-256 of files by path."""
Arrays = dict[str, tuple[str, list[int]]]
"""Type and shape of arrays by name; -1 is any number of rows."""


@dataclass(frozen=True)
class DataSet:
    """File or folder that a stage reads, except models.

    Attributes:
        name: the data set in params.yaml that it is made from, and its own name.
        digest: of names and contents; for a single file, the beginning of its SHA-256.
        path: absolute.
        arrays: of an npz file.
    """

    name: str
    digest: str
    path: str
    files: int
    size: int
    arrays: Arrays


@dataclass(frozen=True)
class Model:
    """Model file that a stage writes.

    Attributes:
        name: task, method and NFE, from its path.
        digest: SHA-256.
        path: as the stage gives it, relative to the project.
        kind: ``policy`` or ``image model``.
        step: optimiser steps since the random initialisation.
        params: metadata in its header: identifiers, settings of data and net, and numbers such as its spread ratio.
        takes, gives: inputs and outputs of a solve.
    """

    name: str
    digest: str
    path: str
    kind: str
    step: int
    params: dict[str, str]
    takes: Arrays
    gives: Arrays


def data_sets(read: Mapping[Path, Digests], made_of: str) -> Iterator[DataSet]:
    """Describe the inputs of a stage, except models and empty stores.

    Args:
        read: inputs, each with the digests of its files.
        made_of: the data set in params.yaml; empty if none.
    """
    for path, digests in read.items():
        empty = path.suffix == ".zarr" and len(digests) <= 1
        if empty or any(map(is_model, digests)):
            continue
        whole = digests.get(path) or hash_of({file.relative_to(path): each for file, each in digests.items()})
        name = f"{made_of}/{path.name}" if made_of else path.as_posix()
        size = sum(file.stat().st_size for file in digests)
        arrays = _arrays(path) if path.suffix == ".npz" else {}
        yield DataSet(name, whole[:DIGEST], str(path.absolute()), len(digests), size, arrays)


def is_model(path: Path) -> bool:
    """Tell whether a file holds the weights of a net."""
    return path.suffix == ".safetensors"


def model_digests(read: Mapping[Path, Digests]) -> list[str]:
    """Return the digests of the models among a stage's inputs."""
    return sorted({each for digests in read.values() for file, each in digests.items() if is_model(file)})


def models(written: Digests) -> Iterator[Model]:
    """Describe this project's models among files; skip others, such as toys and classifiers.

    Of several checkpoints in a folder, only the last one is described.
    """
    for path in {path.parent: path for path in sorted(written) if is_model(path)}.values():
        header = _header(path)
        about = header.get("__metadata__", {})
        shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
        if _POLICY in about:
            yield _policy(path, written[path], about, shapes)
        elif _IMAGES in about:
            yield _image_model(path, written[path], from_stored(json.loads(about[_IMAGES])))


def _policy(path: Path, digest: str, about: Mapping[str, str], shapes: Mapping[str, list[int]]) -> Model:
    record = from_stored(json.loads(about[_POLICY]))
    record.pop("custom", None)  # a complete environment; `task` names it
    if _RESIDUAL in about:
        record["residual"] = from_stored(json.loads(about[_RESIDUAL]))
    data = record["data"]
    observed = data["n_obs_steps"], *shapes["observation_normalizer.offset"]
    actions = ("float32", [-1, data["horizon"], *shapes["action_normalizer.offset"]])
    takes: Arrays = {"observation": ("float32", [-1, *observed]), "noise": actions}
    kind, step = "policy", record["train_steps"]
    return Model(_name(path), digest, path.as_posix(), kind, step, flat(record), takes, {"action": actions})


def _image_model(path: Path, digest: str, record: Mapping[str, Any]) -> Model:
    from pipeline.settings.images import SHAPES

    images = ("float32", [-1, *SHAPES[record["task"]]])
    kind, step = "image model", record["train_steps"]
    return Model(
        _name(path), digest, path.as_posix(), kind, step, flat(record), takes={"noise": images}, gives={"image": images}
    )


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings; join their names by dots."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(value)
    return found


def _name(path: Path) -> str:
    """Return such as ``pusht-ft_fm-nfe1`` for data/lab/pusht/models/ft_fm-nfe1.safetensors."""
    parts = path.with_suffix("").parts
    return "-".join(part for part in parts[2:] if part != "models") if parts[0] == "data" else parts[-1]


def _header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: JSON, after its length in eight bytes."""
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


def _arrays(path: Path) -> Arrays:
    """Return the types and shapes of the numeric arrays in an npz file."""
    from numpy.lib import format as npy

    found: Arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(file)
            if dtype.kind in "biuf":
                found[name.removesuffix(".npy")] = dtype.name, list(shape)
    return found
