"""Find the scripted expert of a task; its module is imported only when it is needed."""

from collections.abc import Mapping
from typing import Any

from pipeline.experts.episode import Expert
from pipeline.tasks.loader import find, load_task, own_tasks
from pipeline.utils.errors import UserError


def expert(task: str, custom: Mapping[str, Any] | None = None) -> Expert:
    """Load the expert of ``task``, a name as for ``load_task``.

    Args:
        custom: settings from which the task is made, if it belongs to a family.

    Raises:
        UserError: the task does not exist or has no expert.
    """
    known = custom is not None or task in own_tasks() or ":" in task
    if not known or not load_task(task, custom).expert:
        allowed = ", ".join(name for name in own_tasks() if load_task(name).expert)
        raise UserError(
            f"--task: given {task!r}, allowed: {allowed}, or module:name of a task with an expert; with --scale, a "
            "block with custom.expert"
        )
    found = find(load_task(task, custom).expert)
    if custom is not None:
        found = found(custom)
    if not isinstance(found, Expert):
        raise UserError(f"--task: given {task!r}, whose expert is of type {type(found).__name__}, allowed: an Expert")
    return found
