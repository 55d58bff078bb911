"""The scripted expert of a task; nothing is imported before it is asked for."""

from pipeline.experts.episode import Expert
from pipeline.tasks.loader import find, load_task, own_tasks
from pipeline.utils.errors import UserError


def expert(task: str) -> Expert:
    """The expert of ``task``, as ``load_task`` names it.

    Raises:
        UserError: the task has none, or there is no such task.
    """
    if (task not in own_tasks() and ":" not in task) or not load_task(task).expert:
        allowed = ", ".join(name for name in own_tasks() if load_task(name).expert)
        raise UserError(f"--task: given {task!r}, allowed: {allowed}, or module:name of a task with an expert")
    found = find(load_task(task).expert)
    if not isinstance(found, Expert):
        raise UserError(f"--task: given {task!r}, whose expert is of type {type(found).__name__}, allowed: an Expert")
    return found
