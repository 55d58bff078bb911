"""Load a task by its name: a task of this project, or ``module:name`` or ``path/to/file.py:name`` from outside."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from pipeline.tasks.api import Task, TaskFamily
from pipeline.utils.errors import UserError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

FORMER = {"pusht_image": "pusht"}
"""Name of a block or model file without a task → its task, if that is not the task of the same name."""


@cache
def own_tasks() -> tuple[str, ...]:
    """List this project's tasks: the modules in this folder that assign a task to ``TASK``."""
    return tuple(name for name, kind in _assigned().items() if kind != TaskFamily.__name__)


@cache
def own_families() -> tuple[str, ...]:
    """List this project's families of tasks: the modules in this folder that assign a family to ``TASK``."""
    return tuple(name for name, kind in _assigned().items() if kind == TaskFamily.__name__)


def _assigned() -> dict[str, str]:
    """Map each module of this folder to the name that it calls to make ``TASK``, without importing it."""
    found = {}
    for path in sorted([*HERE.glob("*.py"), *HERE.glob("*/__init__.py")]):
        made = re.search(r"^TASK\b.*=\s*(\w*)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if made:
            found[path.stem if path.name != "__init__.py" else path.parent.name] = made.group(1)
    return dict(sorted(found.items()))


def load_task(name: str, settings: Mapping[str, Any] | None = None) -> Task:
    """Load the task ``name``; its module is imported at the first call.

    Args:
        name: one of ``own_tasks`` or ``own_families``, or ``module:name``. The module is importable, or a path that
            ends in ``.py``; a relative path is relative to the project's root.
        settings: a block's key ``custom``, from which a family makes the task; None: the task is of no family.

    Raises:
        UserError: there is no such task; or ``settings`` are missing, not allowed or wrong; one line.
    """
    if ":" in name:
        found, at = find(name), name
    elif name in (*own_tasks(), *own_families()):
        found, at = importlib.import_module(f"pipeline.tasks.{name}").TASK, f"pipeline.tasks.{name}:TASK"
    else:
        raise UserError(
            f"given {name!r}, allowed: {', '.join((*own_tasks(), *own_families()))}; of your own: module:name or "
            "path/to/file.py:name"
        )
    if isinstance(found, TaskFamily):
        return _made(found, settings, name)
    if not isinstance(found, Task):
        raise UserError(f"given {name!r}, allowed: a pipeline.tasks.api.Task; {at} is of type {type(found).__name__}")
    if settings is not None:
        raise UserError(
            f"given {name!r} with a block custom, allowed: custom where a task is made from it, and only there"
        )
    return found


def _made(family: TaskFamily, settings: Mapping[str, Any] | None, name: str) -> Task:
    if settings is None:
        raise UserError(f"given {name!r} alone, allowed: with a block custom, which it is made from")
    try:
        return family.make(family.settings.model_validate(dict(settings)))
    except ValidationError as error:
        raise UserError(_complaint(error)) from None


def _complaint(error: ValidationError) -> str:
    """Describe the error in a block ``custom``: its key, what was given and what is allowed."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in ("custom", *first["loc"]))
    told = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if not first["loc"]:  # an error of the whole block: the message names the key
        return f"{key}.{told}"
    if "allowed: " in told:
        return f"{key}: {told}"
    given, by_kind = first["input"], {"missing": "missing", "extra_forbidden": "unknown key"}
    if first["type"] in by_kind:
        return f"{key}: {by_kind[first['type']]}"
    kinds = {"too_long": f"at most {first.get('ctx', {}).get('max_length')} keys", "dict_type": "keys with their sizes"}
    return f"{key}: given {given!r}, allowed: {kinds.get(first['type'], told)}"


def find(reference: str) -> Any:
    """Import the object that ``module:name`` names; raises ``UserError``."""
    module, _, name = reference.rpartition(":")
    imported = _imported(module, reference)
    if not hasattr(imported, name):
        raise UserError(f"given {reference!r}, allowed: a name in {module}, which has no {name!r}")
    return getattr(imported, name)


def _imported(module: str, reference: str) -> ModuleType:
    try:
        if not module.endswith(".py"):
            return importlib.import_module(module)
        path = (ROOT / Path(module).expanduser()).resolve()
        # import it by its bare name, so that worker processes find it again
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        imported = importlib.import_module(path.stem)
    except Exception as error:  # a foreign module may raise anything
        raise UserError(f"given {reference!r}, which cannot be imported: {' '.join(str(error).split())}") from error
    if Path(imported.__file__ or "").resolve() != path:
        raise UserError(
            f"given {reference!r}, allowed: a file of another name; {path.stem} is {imported.__file__} here"
        )
    return imported


def file_of(name: str) -> str:
    """Return the file that defines the task ``name``: relative to the project's root, or absolute if outside.

    Args:
        name: the name of an existing task, or of anything else that ``find`` can import.
    """
    if ":" not in name:
        path = HERE / f"{name}.py"
        return str((path if path.exists() else HERE / name / "__init__.py").relative_to(ROOT))
    module = name.rpartition(":")[0]
    spec = None if module.endswith(".py") else importlib.util.find_spec(module)
    path = (ROOT / Path(module if spec is None or spec.origin is None else spec.origin).expanduser()).resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
