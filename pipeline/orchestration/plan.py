"""Read DVC's graph: its stages in order, which of them are out of date, and which a table needs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from pipeline.utils import platform

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage

Inputs = Mapping[str, Sequence[str]]
"""Each stage with those others whose outputs it reads."""

FINAL_STAGES = {
    "table1": ("tabulate_images", "draw_images"),
    "table2": ("tabulate", "tabulate_settings", "report_stability", "draw", "draw_toys"),
}
ALL = "all"
MAIN_ROWS = "evaluate_rollouts"
"""The stage that makes the rows of flow matching and of its fine-tuning; others make those beside them."""

_COMMAND = re.compile(r"exec python -m (stages\.\w+)((?: [\w./:,=-]+)*)")
"""A command that no shell changes a word of."""


class Program(NamedTuple):
    """What ``python -m module arguments…`` runs."""

    module: str
    arguments: list[str]


@dataclass(frozen=True)
class Plan:
    """The stages that are to be brought up to date.

    Attributes:
        stages: by name, with all that they need.
        inputs: of each stage, by urgency (see ``by_urgency``).
        stale: those out of date, and those that read from such, which may turn out to be up to date.
    """

    stages: Mapping[str, "Stage"]
    inputs: Inputs
    stale: frozenset[str]

    @property
    def stale_inputs(self) -> Inputs:
        """The part of ``inputs`` that is ``stale``."""
        return {
            name: [other for other in inputs if other in self.stale]
            for name, inputs in self.inputs.items()
            if name in self.stale
        }


class AwaitedLock:
    """DVC's lock of a repository, had as soon as it is free: DVC looks twice a second, and has it often."""

    def __init__(self, lockfile: str) -> None:
        self.lockfile = lockfile
        self._file: IO[str] | None = None

    def lock(self) -> None:
        self._file = Path(self.lockfile).open("a", encoding="utf-8")  # noqa: SIM115 until unlocked
        platform.lock(self._file, wait=True)

    def unlock(self) -> None:
        assert self._file
        self._file = self._file.close()

    @property
    def is_locked(self) -> bool:
        return self._file is not None

    def __enter__(self) -> None:
        self.lock()

    def __exit__(self, *_: object) -> None:
        self.unlock()


@contextmanager
def repository(root: Path) -> Iterator["Repo"]:
    """DVC's repository in ``root``, which must be the current folder; it waits where another DVC is at work."""
    from dvc.lock import Lock
    from dvc.repo import Repo
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # the monitor would be a thread in a process that forks
    with Repo(str(root), _wait_for_lock=True) as repo:
        if type(repo.lock) is Lock:
            repo.lock = AwaitedLock(repo.lock.lockfile)
        yield repo


def read_plan(repo: "Repo", file: str = "dvc.yaml", target: str = ALL) -> Plan:
    """Read what is to be done for ``target`` (a key of ``FINAL_STAGES``, or all) of the pipeline ``file``.

    Raises:
        DvcException: DVC cannot read the pipelines.
        ValueError: no stage makes the target.
    """
    from dvc.repo import lock_repo

    with lock_repo(repo):
        graph = read_graph(repo, file, target)
        stale: set[Stage] = set()
        for stage, others in graph.items():
            if not stale.isdisjoint(others) or stage.changed():
                stale.add(stage)
    inputs = {stage.addressing: [other.addressing for other in others] for stage, others in graph.items()}
    return Plan(
        {stage.addressing: stage for stage in graph},
        {name: inputs[name] for name in by_urgency(inputs)},
        frozenset(stage.addressing for stage in stale),
    )


def read_graph(repo: "Repo", file: str = "dvc.yaml", target: str = ALL) -> dict["Stage", list["Stage"]]:
    """The stages of ``file`` that make ``target``, and those that they need, with their inputs; inputs come first.

    Raises as ``read_plan``.
    """
    from dvc.repo.reproduce import get_active_graph, plan_repro

    graph = get_active_graph(repo.index.graph)
    # not DVC's collect_stages, which reads all pipelines and locks once more
    final = [stage for stage in graph if stage.path_in_repo == file and _makes(stage, target)]
    if not final and target != ALL:
        raise ValueError(f"no stage makes {target}; it needs one of {', '.join(FINAL_STAGES[target])}")
    wanted = set(plan_repro(graph, final))
    # sorted here: DVC's own order differs from run to run
    order = TopologicalSorter({node: list(graph.successors(node)) for node in graph}).static_order()
    return {stage: list(graph.successors(stage)) for stage in order if stage in wanted}


def _makes(stage: "Stage", target: str) -> bool:
    return target == ALL or getattr(stage, "name", "").partition("@")[0] in FINAL_STAGES[target]


def by_urgency(inputs: Inputs) -> list[str]:
    """The names in ``inputs``, the main rows of Table 2 and what they need first, to be read while the rest is made.

    Then come those that the longest chain waits for; of equals, in their order there.
    """
    chain = dict.fromkeys(inputs, 0)
    main = {name for name in inputs if name.partition("@")[0] == MAIN_ROWS}
    for name in reversed(list(TopologicalSorter(inputs).static_order())):
        for other in inputs[name]:
            chain[other] = max(chain[other], chain[name] + 1)
            if name in main:
                main.add(other)
    return sorted(inputs, key=lambda name: (name not in main, -chain[name]))


def programs_of(stage: "Stage") -> list[Program]:
    """The programs of this project that ``stage`` runs."""
    commands = stage.cmd if isinstance(stage.cmd, list) else (stage.cmd or "").splitlines()
    found = map(_COMMAND.fullmatch, commands)
    return [Program(match[1], match[2].split()) for match in found if match]
