"""Read Minari data sets (Younis et al. 2024), HDF5 and Arrow, by the package minari, without its recorder.

Observations are ``observations``, or ``observations/<key>`` if the environment observes a dictionary. Actions are
``actions``. The last observation of an episode has no action and is left out.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.tasks.formats.recording import Array, Feature, Recording, Rows, one_line
from pipeline.utils.errors import UserError

METADATA, REWARDS = "metadata.json", "rewards"


def open_minari(folder: Path) -> Recording:
    """Open the data set in ``folder``, which holds ``metadata.json`` or ``data/metadata.json``.

    Raises:
        UserError: it is damaged, incomplete, of a version that minari does not read, or has no episodes.
    """
    import minari

    path = folder if (folder / METADATA).is_file() else folder / "data"
    try:
        dataset = minari.MinariDataset(path)
        indices = [int(index) for index in dataset.episode_indices]
        spaces = {"observations": dataset.observation_space, "actions": dataset.action_space}
        spec, robot = dataset.env_spec, dataset.storage.metadata.get("dataset_id")
    except Exception as error:  # minari passes on the errors of h5py, json and gymnasium
        raise UserError(f"{path}: is no whole Minari data set: {one_line(error)}") from error
    if not indices:
        raise UserError(f"{path}: holds no episodes")
    return Recording(
        folder,
        "minari",
        f"Minari ({dataset.storage.metadata['data_format']})",
        {REWARDS: Feature((), "float64")}
        | {key: feature for name, space in spaces.items() for key, feature in _features(name, space)},
        {f"{path}: episode {index}": partial(_rows, dataset, path, index) for index in indices},
        one_by_one=True,
        facts={"data set": str(robot)} if robot else {},
        environment=None if spec is None else _recipe(spec),
    )


def _features(name: str, space: Any) -> Iterator[tuple[str, Feature]]:
    parts = _parts(getattr(space, "spaces", None))
    for key, part in parts.items():
        yield from _features(f"{name}/{key}", part)
    if not parts and space.shape is not None:
        yield name, Feature(tuple(space.shape), str(space.dtype))


def _parts(composite: Any) -> dict[str, Any]:
    """Return the parts of a dictionary or tuple by name; empty for anything else."""
    if isinstance(composite, tuple):
        composite = dict(enumerate(composite))
    return {str(key): part for key, part in composite.items()} if hasattr(composite, "items") else {}


def _recipe(spec: Any) -> dict[str, Any]:
    """Make the block ``environment`` of params.yaml from gymnasium's ``EnvSpec``."""
    module = str(spec.entry_point).partition(":")[0].partition(".")[0]
    recipe: dict[str, Any] = {"id": spec.id, "module": module, "arguments": dict(spec.kwargs)}
    return recipe | ({"max_steps": spec.max_episode_steps} if spec.max_episode_steps else {})


def _rows(dataset: Any, path: Path, index: int, keys: Sequence[str]) -> Rows:
    try:
        (episode,) = dataset.iterate_episodes([index])
        ((steps,),) = [[int(told["total_steps"]) for told in dataset.storage.get_episode_metadata([index])]]
    except Exception as error:  # as above
        raise UserError(f"{path}: episode {index} cannot be read: {one_line(error)}") from error
    arrays = dict([*_arrays("observations", episode.observations), *_arrays("actions", episode.actions)])
    arrays[REWARDS] = np.asarray(episode.rewards)
    for key in keys:
        # Minari's Arrow storage reads only the first record batch of an episode and drops the others.
        if len(arrays[key]) != steps + key.startswith("observations"):
            raise UserError(f"{path}: episode {index} has {len(arrays[key])} {key} of {steps} steps; it is cut short")
    return {key: arrays[key][:steps] for key in keys}


def _arrays(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    parts = _parts(value)
    for key, part in parts.items():
        yield from _arrays(f"{name}/{key}", part)
    if not parts:
        yield name, np.asarray(value)
