"""Read DVC's graph: the stages in order, the stale ones, and those that a table needs."""

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
"""Maps each stage to the stages whose outputs it reads."""

FINAL_STAGES = {
    "table1": ("tabulate_images", "draw_images"),
    "table2": ("tabulate", "tabulate_offline", "tabulate_settings", "report_stability", "draw", "draw_toys"),
}
ALL = "all"
MAIN_ROWS = "evaluate_rollouts"
"""The stage that makes the rows of flow matching and its fine-tuning; other stages make the baselines."""

_COMMAND = re.compile(r"exec python -m (stages\.\w+)((?: [\w./:,=-]+)*)")
"""A command without anything that a shell expands."""


class Program(NamedTuple):
    """Program that ``python -m module arguments…`` runs."""

    module: str
    arguments: list[str]

    @property
    def work(self) -> str:
        """Name of the program; for ``report``, which makes many reports, the name of its stage."""
        name = self.module.rpartition(".")[2]
        return self.arguments[0] if name == "report" else name


@dataclass(frozen=True)
class Plan:
    """Stages to bring up to date.

    Attributes:
        inputs: of each stage and of all stages that it needs, by urgency (see ``by_urgency``).
        stale: stages out of date, and stages that read their outputs, which may turn out to be up to date.
        commands: of each stage, one per line.
        outs: output files of each stage, relative to the root.
    """

    inputs: Inputs
    stale: frozenset[str]
    commands: Mapping[str, str]
    outs: Mapping[str, Sequence[str]]

    @property
    def stale_inputs(self) -> Inputs:
        """Part of ``inputs`` with only ``stale`` stages."""
        return {
            name: [other for other in inputs if other in self.stale]
            for name, inputs in self.inputs.items()
            if name in self.stale
        }


def ask_plan(root: Path, file: str = "dvc.yaml", target: str = ALL, env: Mapping[str, str] | None = None) -> Plan:
    """Return the result of ``read_plan`` in another process, so that this one does not import DVC.

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
    """Open DVC's repository in ``root``, the current folder; it waits while another DVC holds its lock."""
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo:
        yield repo


def read_plan(repo: "Repo", file: str = "dvc.yaml", target: str = ALL) -> Plan:
    """Read the plan for ``target`` of the pipeline ``file``: a key of ``FINAL_STAGES``, or all.

    ``target`` may also be the name of a stage of any pipeline.

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
    """Return the stages of ``file`` for ``target`` and those that they need, each with its inputs, inputs first.

    Raises as ``read_plan``.
    """
    from dvc.repo.reproduce import get_active_graph, plan_repro

    graph = get_active_graph(repo.index.graph)
    # not DVC's collect_stages, which reads all pipelines and lock files again
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
    """Sort the names in ``inputs``: first the main rows of Table 2 and their inputs, to be read while the rest runs.

    In both groups the stages with the longest chain of dependents come first; ties keep their order.
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
    """Return the programs of this project that the lines of ``command`` run."""
    found = map(_COMMAND.fullmatch, command.splitlines())
    return [Program(match[1], match[2].split()) for match in found if match]


def main() -> int:
    """Print the plan for the arguments ``FILE TARGET`` as JSON, or an error on stderr; return the exit code."""
    from dvc.exceptions import DvcException

    file, target = sys.argv[1:]
    try:
        with repository(Path.cwd()) as repo:
            plan = read_plan(repo, file, target)
    except ValueError as error:
        print(f"error: {Path(file).resolve()}: {error}", file=sys.stderr)
        return 255
    except DvcException:
        logging.getLogger("dvc").exception("")  # DVC's own message shows the lines of dvc.yaml
        return 255
    except (OSError, sqlite3.Error) as error:  # a full disk or a read-only folder
        print(f"error: DVC cannot write to {Path('.dvc').resolve()}: {error}", file=sys.stderr)
        return 255
    print(json.dumps(asdict(plan) | {"stale": sorted(plan.stale)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
