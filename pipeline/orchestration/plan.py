"""Read DVC's graph: its stages in order, which of them are out of date, and which a table needs."""

import json
import logging
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.utils.errors import UserError

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage

Inputs = Mapping[str, Sequence[str]]
"""Each stage with those others whose outputs it reads."""

FINAL_STAGES = {
    "table1": ("tabulate_images", "draw_images"),
    "table2": ("tabulate", "tabulate_offline", "tabulate_settings", "report_stability", "draw", "draw_toys"),
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

    @property
    def work(self) -> str:
        """Its name; of a report that of its stage, since ``report`` runs many."""
        name = self.module.rpartition(".")[2]
        return self.arguments[0] if name == "report" else name


@dataclass(frozen=True)
class Plan:
    """The stages that are to be brought up to date.

    Attributes:
        inputs: of each stage, all that it needs included, by urgency (see ``by_urgency``).
        stale: those out of date, and those that read from such, which may turn out to be up to date.
        commands: what each stage runs, a line a command.
        outs: the files that each makes, relative to the root.
    """

    inputs: Inputs
    stale: frozenset[str]
    commands: Mapping[str, str]
    outs: Mapping[str, Sequence[str]]

    @property
    def stale_inputs(self) -> Inputs:
        """The part of ``inputs`` that is ``stale``."""
        return {
            name: [other for other in inputs if other in self.stale]
            for name, inputs in self.inputs.items()
            if name in self.stale
        }


def ask_plan(root: Path, file: str = "dvc.yaml", target: str = ALL, env: Mapping[str, str] | None = None) -> Plan:
    """``read_plan`` in a process of its own, which imports DVC and ends.

    Raises:
        UserError: there is no plan; the message is DVC's.
    """
    command = [sys.executable, "-m", "pipeline.orchestration.plan", file, target]
    told = subprocess.run(command, cwd=root, env=env, capture_output=True, encoding="utf-8", check=False)
    if told.returncode:
        raise UserError(told.stderr.strip() or f"{root / file}: DVC ended with exit code {told.returncode}")
    plan = json.loads(told.stdout)
    return Plan(**plan | {"stale": frozenset(plan["stale"])})


@contextmanager
def repository(root: Path) -> Iterator["Repo"]:
    """DVC's repository in ``root``, which must be the current folder; it waits where another DVC is at work."""
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo:
        yield repo


def read_plan(repo: "Repo", file: str = "dvc.yaml", target: str = ALL) -> Plan:
    """Read what is to be done for ``target`` (a key of ``FINAL_STAGES``, or all) of the pipeline ``file``.

    Of any pipeline where ``target`` is a stage's own name.

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
    root = Path(repo.root_dir)
    return Plan(
        {name: inputs[name] for name in by_urgency(inputs)},
        frozenset(stage.addressing for stage in stale),
        {stage.addressing: "\n".join(stage.cmd) if isinstance(stage.cmd, list) else stage.cmd or "" for stage in graph},
        {
            stage.addressing: [Path(out.fs_path).relative_to(root).as_posix() for out in stage.outs if out.is_in_repo]
            for stage in graph
        },
    )


def read_graph(repo: "Repo", file: str = "dvc.yaml", target: str = ALL) -> dict["Stage", list["Stage"]]:
    """The stages of ``file`` that make ``target``, and those that they need, with their inputs; inputs come first.

    Raises as ``read_plan``.
    """
    from dvc.repo.reproduce import get_active_graph, plan_repro

    graph = get_active_graph(repo.index.graph)
    # not DVC's collect_stages, which reads all pipelines and locks once more
    final = [stage for stage in graph if stage.addressing == target]
    final = final or [stage for stage in graph if stage.path_in_repo == file and _makes(stage, target)]
    if not final and target != ALL:
        needed = f"; it needs one of {', '.join(FINAL_STAGES[target])}" if target in FINAL_STAGES else ""
        raise ValueError(f"no stage makes {target}{needed}")
    wanted = set(plan_repro(graph, final))
    # sorted here: DVC's own order differs from run to run
    order = TopologicalSorter({node: list(graph.successors(node)) for node in graph}).static_order()
    return {stage: list(graph.successors(stage)) for stage in order if stage in wanted}


def _makes(stage: "Stage", target: str) -> bool:
    return target == ALL or getattr(stage, "name", "").partition("@")[0] in FINAL_STAGES.get(target, ())


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


def programs_of(command: str) -> list[Program]:
    """The programs of this project that the lines of ``command`` run."""
    found = map(_COMMAND.fullmatch, command.splitlines())
    return [Program(match[1], match[2].split()) for match in found if match]


def main() -> int:
    """``python -m pipeline.orchestration.plan FILE TARGET``: the plan as JSON, or why there is none on stderr."""
    from dvc.exceptions import DvcException

    file, target = sys.argv[1:]
    try:
        with repository(Path.cwd()) as repo:
            plan = read_plan(repo, file, target)
    except ValueError as error:
        print(f"error: {Path(file).resolve()}: {error}", file=sys.stderr)
        return 255
    except DvcException:
        logging.getLogger("dvc").exception("")  # in DVC's words, which show the lines of dvc.yaml
        return 255
    except (OSError, sqlite3.Error) as error:  # a full disk, a folder that may not be written
        print(f"error: DVC cannot keep its notes in {Path('.dvc').resolve()}: {error}", file=sys.stderr)
        return 255
    print(json.dumps(asdict(plan) | {"stale": sorted(plan.stale)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
