"""What tables call tasks and evaluations, and which of the paper's numbers stand beside them, as each task says."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.settings.schema import TaskSettings

Blocks = Mapping[str, TaskSettings]
"""Blocks of params.yaml by name; of their settings ``task``, ``custom`` and ``title`` are read."""


class Quoted(NamedTuple):
    """Where the paper's numbers of an evaluation stand."""

    column: int  # of its Table 2, the number of a pair of columns
    dataset: str  # that it learned from


def task_titles(blocks: Blocks) -> dict[str, str]:
    """The title of each block, by its name, which is added where several have the same."""
    titles = {name: settings.title or settings.load_task().title for name, settings in blocks.items()}
    times = Counter(titles.values())
    return {name: title if times[title] == 1 else f"{title} [{name}]" for name, title in titles.items()}


def evaluation_titles(blocks: Blocks) -> dict[str, str]:
    """The title of each evaluation, by its name."""
    found = {}
    for block, title in task_titles(blocks).items():
        task = blocks[block].load_task()
        for evaluation, which in zip(task.evaluations(block), task.envs, strict=True):
            found[evaluation] = f"{title} ({which})" if which else title
    return found


def quoted(blocks: Blocks) -> dict[str, Quoted]:
    """Where the paper's numbers of each evaluation stand, by its name; of those that it has."""
    found = {}
    for block, settings in blocks.items():
        task = settings.load_task()
        for evaluation, which in zip(task.evaluations(block), task.envs, strict=True):
            if task.paper and which in task.paper.columns:
                found[evaluation] = Quoted(task.paper.columns[which], task.paper.dataset)
    return found
