"""Check the recording settings of a Robomimic file (``env_args``) against the simulation here."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.tasks.robomimic.simulator import ENV_VERSION, Task, env_arguments
from pipeline.utils.errors import UserError

OLDEST_VERSION = "1.2.0"
"""The version of robosuite of robomimic's first recordings; their files do not name it."""

_FREE = {"control_delta", "kp_limits", "damping_limits", "ramp_ratio"}
"""Controller settings that are not checked: the actions themselves tell the first; the others are of unused modes."""


def check_env_args(path: Path, given: Mapping[str, Any], task: Task) -> None:
    """Check those settings ``given`` in the file at ``path`` that change the effect of an action, key by key.

    A setting missing in the file has robosuite's default, which is also simulated here.

    Raises:
        UserError: a setting differs from the simulation of ``task``; the line names it.
    """
    expected = env_arguments(task)
    _check(path, "env_name", given.get("env_name"), expected["env_name"])
    _check(path, "type", given.get("type"), expected["type"])
    _check_version(path, given.get("env_version"))
    arguments, simulated = given.get("env_kwargs"), expected["env_kwargs"]
    if not isinstance(arguments, dict):
        raise UserError(f"{path}: env_args.env_kwargs is {arguments!r}, must be an object with the task's settings")
    robots = arguments.get("robots")
    _check(path, "env_kwargs.robots", [robots] if isinstance(robots, str) else robots, simulated["robots"])
    _check(path, "env_kwargs.control_freq", arguments.get("control_freq", 20), simulated["control_freq"])
    if arguments.get("env_configuration", "default") != "default":
        configuration = simulated.get("env_configuration", "default")
        _check(path, "env_kwargs.env_configuration", arguments["env_configuration"], configuration)
    controllers = arguments.get("controller_configs")
    for controller in controllers if isinstance(controllers, list) else [controllers]:
        _check_controller(path, controller, simulated["controller_configs"])


def _check_controller(path: Path, given: Any, simulated: Mapping[str, Any]) -> None:
    if not isinstance(given, dict):
        raise UserError(f"{path}: env_args.env_kwargs.controller_configs is {given!r}, must be OSC_POSE's settings")
    for key in simulated.keys() - _FREE:
        if key in given or key == "type":
            _check(path, f"env_kwargs.controller_configs.{key}", given.get(key), simulated[key])


def _check_version(path: Path, given: Any) -> None:
    if given is None:
        return
    numbers = re.match(r"(\d+)\.(\d+)", str(given))
    if not numbers or not _minor(OLDEST_VERSION) <= tuple(map(int, numbers.groups())) <= _minor(ENV_VERSION):
        raise UserError(
            f"{path}: env_args.env_version is {given!r}, must be {OLDEST_VERSION} to {ENV_VERSION} (robosuite): "
            "actions of other versions mean something else"
        )


def _minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def _check(path: Path, key: str, given: Any, expected: Any) -> None:
    if given != expected:
        raise UserError(f"{path}: env_args.{key} is {given!r}, must be {expected!r}")
