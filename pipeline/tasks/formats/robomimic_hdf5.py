"""Read HDF5 files in robomimic's layout (Mandlekar et al., CoRL 2021), of any environment.

MimicGen and LIBERO write this layout too. A group ``data`` holds a group ``demo_<i>`` per episode, with ``actions``,
``obs/<key>`` and more, one row per step. The attribute ``env_args`` of ``data`` is the environment's recipe. Keys are
paths within an episode's group, such as ``obs/object``.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.tasks.formats.recording import Feature, Recording, Rows, one_line
from pipeline.utils.errors import UserError

PREFIXES = {1: "robosuite/", 2: ""}
"""``env_args.type`` → prefix of the environment's id in params.yaml, for robosuite and gymnasium."""


def open_robomimic(path: Path) -> Recording:
    """Open a robomimic file.

    Raises:
        UserError: it is no complete HDF5 file, or has no group ``data`` with episodes; ``env_args`` is no JSON.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            data = file["data"]
            recipe = _recipe(path, data.attrs.get("env_args", "{}"))
            names = sorted((name for name in data if "actions" in data[name]), key=_number)
            if not names:
                raise UserError(f"{path}: group data holds no episodes with actions, such as demo_0")
            features = _features(data[names[0]])
    except (OSError, RuntimeError, KeyError) as error:  # h5py raises these for truncated and damaged files
        raise UserError(f"{path}: is not a whole HDF5 file of robomimic: {one_line(error)}") from error
    arguments = recipe.get("env_kwargs", {})
    return Recording(
        path,
        "robomimic",
        "robomimic HDF5",
        features,
        {f"{path}: data/{name}": partial(_rows, path, f"data/{name}") for name in names},
        one_by_one=True,
        rate=float(arguments["control_freq"]) if "control_freq" in arguments else None,
        facts={key: str(recipe[key]) for key in ("env_name", "env_version") if key in recipe},
        environment=_environment(recipe),
    )


def _recipe(path: Path, text: Any) -> Mapping[str, Any]:
    try:
        recipe = json.loads(text)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: attribute env_args of group data is no JSON: {one_line(error)}") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("env_kwargs", {}), dict):
        raise UserError(
            f"{path}: attribute env_args of group data is {recipe!r}, expected a JSON object with env_kwargs"
        )
    return recipe


def _environment(recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """Make the block ``environment`` of params.yaml; None: this kind is not simulated here."""
    prefix = PREFIXES.get(recipe.get("type", 0))
    if prefix is None or "env_name" not in recipe:
        return None
    success = {"success": "success"} if prefix else {}
    return {"id": prefix + recipe["env_name"], "arguments": recipe.get("env_kwargs", {}), **success}


def _number(name: str) -> tuple[int, str]:
    """Return a sort key by number: demo_2 before demo_10."""
    digits = re.search(r"\d+$", name)
    return int(digits.group()) if digits else -1, name


def _features(demo: Any) -> dict[str, Feature]:
    features: dict[str, Feature] = {}

    def add(name: str, item: Any) -> None:
        if getattr(item, "shape", ()):
            features[name] = Feature(tuple(item.shape[1:]), str(item.dtype))

    demo.visititems(add)
    return features


def _rows(path: Path, name: str, keys: Sequence[str]) -> Rows:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            demo = file[name]
            absent = [key for key in keys if key not in demo]
            if absent:
                raise UserError(f"{path}: {name}/{absent[0]} is missing")
            return {key: demo[key][()] for key in keys}
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: {name} cannot be read: {one_line(error)}") from error
