"""The scripted expert of a task; nothing is imported before it is asked for."""

from collections.abc import Mapping
from typing import Any

from pipeline.experts.episode import Expert
from pipeline.tasks.loader import find, load_task, own_tasks
from pipeline.utils.errors import UserError


def expert(task: str, custom: Mapping[str, Any] | None = None) -> Expert:
    """The expert of ``task``, as ``load_task`` names it.

    Args:
        custom: what the task is made from, where it is one of a family.

    Raises:
        UserError: the task has none, or there is no such task.
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
