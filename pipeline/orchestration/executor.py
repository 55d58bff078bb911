"""Run DVC's stages, those that do not need each other side by side.

DVC decides what is out of date, runs it and keeps its cache and lock; the engine decides when each stage has its turn.
It has it in a process forked from this one, which has read dvc.yaml and dvc.lock for all of them, and its program in
another, which has imported what it needs (``preload``). Where forking is not safe (macOS), each stage is a ``dvc repro
--single-item`` of its own. Stages wait for free memory, unless nothing else is at work, by the needs measured of each
kind (``needs``).

``python -m pipeline.orchestration.executor [--jobs N]``, in the root, brings dvc.yaml up to date. With ``--serve
TARGET`` it prints the plan of TARGET as a line of JSON, and runs the stages that other processes call for (see
``pipeline.utils.handover``) until SIGTERM.
"""

import argparse
import json
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.orchestration import lockguard
from pipeline.orchestration.output import PROGRESS_SECONDS, Screen, on_terminal, screen
from pipeline.orchestration.plan import Plan, programs_of, read_plan, repository
from pipeline.orchestration.restore import kept_reports
from pipeline.utils import handover, platform

if TYPE_CHECKING:
    from dvc.stage import Stage

    from pipeline.orchestration.preload import Call

INTERRUPTED = 130
PLAN = "plan: "
"""Begins the line with the plan."""

# Where threads outnumber cores, one that spins while it waits keeps the core from the one that it waits for: two
# trainings of two threads each on two cores become 30 times slower. oneDNN's convolutions spin all the same,
# so --jobs should leave each stage the cores that its ``threads`` ask for.
PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
SELDOM = {"TQDM_MININTERVAL": str(PROGRESS_SECONDS)}
"""For progress bars where each refresh is a line that stays; read when tqdm is imported."""


class Outcome(NamedTuple):
    """Stages that failed, and those not run since they need one that did."""

    failed: list[str]
    not_run: list[str]


class Engine:
    """Runs the stages of a plan, when they have their turn or are called for, and the programs that DVC starts."""

    def __init__(self, plan: Plan, root: Path, screen: Screen | None = None) -> None:
        """Of the project in ``root``, with the stages' output on a screen, or where that of this process goes."""
        from pipeline.orchestration.children import Children
        from pipeline.orchestration.needs import Room, need_of, read_table
        from pipeline.orchestration.preload import Server

        table = read_table()
        self._plan, self._screen, self._told = plan, screen, set[str]()
        self._room = Room({name: need_of(programs_of(stage), table) for name, stage in plan.stages.items()})
        self._calls: list[Call] = []
        self._children = Children(screen)
        lockguard.guard(root, os.getpid())
        self._server = Server(handover.socket_of(root), self._children, self._calls.append)
        if platform.FORK_IS_SAFE:
            os.environ[handover.ENGINE] = str(handover.socket_of(root))

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def run(self, jobs: int) -> Outcome:
        """Bring what is stale up to date, inputs first; one that fails stops only those that need it.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM came; no stage is left at work.
        """
        from pipeline.orchestration.children import interrupts

        inputs = self._plan.stale_inputs
        urgency = {name: place for place, name in enumerate(inputs)}
        sorter = TopologicalSorter(inputs)
        sorter.prepare()
        ready, made, failed = list[str](), set[str](), list[str]()

        def ended(name: str, code: int) -> None:
            if code:
                failed.append(name)
            else:
                made.add(name)
                sorter.done(name)

        with interrupts() as received:
            while not received:
                ready = sorted([*ready, *sorter.get_ready()], key=urgency.__getitem__)
                for name in list(ready):
                    if len(self._children.pids()) >= jobs:
                        break
                    if self._has_room(name, self._say):
                        ready.remove(name)
                        self._children.start(name, self._work(name), partial(ended, name))
                if not self._children.pids():
                    break
                self._children.step()
            if received:
                self._children.stop()
                raise KeyboardInterrupt
        return Outcome(failed, [name for name in inputs if name not in made and name not in failed])

    def serve(self) -> None:
        """Run the stages that are called for until SIGINT or SIGTERM comes; then no stage is left at work."""
        from pipeline.orchestration.children import interrupts

        with interrupts() as received:
            while not received:
                for call in list(self._calls):
                    name = call.request["stage"]
                    if call.gone:
                        self._calls.remove(call)
                        call.refuse()
                    elif self._has_room(name, lambda _, lack, call=call: call.print(lack)):  # type: ignore[misc]
                        self._calls.remove(call)
                        call.run(name, self._work(name))
                self._children.step()
            self._children.stop()

    def _work(self, name: str) -> Callable[[], int]:
        stage = self._plan.stages[name]
        return partial(reproduce, stage) if platform.FORK_IS_SAFE else partial(_start_dvc, stage)

    def _has_room(self, name: str, say: Callable[[str, str], object]) -> bool:
        """Whether there is memory for a stage; if not, say why it waits, once."""
        lack = self._room.lack(name, self._children.pids())
        if lack and name not in self._told:
            self._told.add(name)
            say(name, lack)
        return not lack

    def _say(self, name: str, text: str) -> None:
        if self._screen:
            self._screen.line(name, text, sys.stderr)


def reproduce(stage: "Stage") -> int:
    """Do what ``dvc repro --single-item`` does for ``stage``, in a process of its own; return the exit code."""
    from dvc.repo import lock_repo

    root = Path(stage.repo.root_dir)
    outs = [Path(out.fs_path).relative_to(root) for out in stage.outs if out.is_in_repo]
    try:
        # noted here already: DVC removes them before the program begins
        with lock_repo(stage.repo), stage.repo.scm_context(quiet=True), kept_reports(root, stage.name, outs):
            if stage.reproduce():
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # DVC writes dvc.lock in place
                lockguard.keep(root)
                stage.dump(update_pipeline=False)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # DVC goes on after any, too
        logging.getLogger("dvc").error("failed to reproduce '%s': %s", stage.addressing, error)
        return 1
    return 0


def _start_dvc(stage: "Stage") -> int:
    """Become the DVC that brings ``stage`` up to date."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage.addressing]
    os.execv(sys.executable, command)


def bring_up_to_date(file: str, jobs: Callable[[], int], unmade: Path | None = None) -> Outcome:
    """Bring the pipeline ``file``, in the current folder, and what it needs up to date.

    Args:
        jobs: how many stages may run at a time; asked if there are any.
        unmade: where to write, if stages fail, what is left unmade (see ``pipeline.orchestration.partial``).

    Raises:
        DvcException: DVC cannot read the pipelines.
        KeyboardInterrupt: SIGINT came; no stage is left at work.
    """
    root = Path.cwd()
    with repository(root) as repo:
        plan = read_plan(repo, file)
        if not plan.stale:
            print("Data and pipelines are up to date.")
            return Outcome([], [])
        from pipeline.orchestration.partial import write_unmade

        count = jobs()
        if count > 1:
            _set(PATIENT_THREADS)
        with screen() if count > 1 else nullcontext() as to, Engine(plan, root, to) as engine:
            outcome = engine.run(count)
        if unmade and outcome.failed:
            failed, not_run = ([plan.stages[name] for name in names] for names in outcome)
            write_unmade(unmade, root, failed, not_run)
        return outcome


def _set(variables: Mapping[str, str]) -> None:
    """Set variables of this process and those that it starts, but for those that the user has set."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def run(file: str, jobs: Callable[[], int], unmade: Path | None = None) -> int:
    """``bring_up_to_date`` as a program: exit code 0, 1 where stages failed, 130 after SIGINT, 255 where DVC cannot
    work."""
    if not on_terminal():
        _set(SELDOM)
    from dvc.exceptions import DvcException

    try:
        outcome = bring_up_to_date(file, jobs, unmade)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another must not break what ends now
        return INTERRUPTED
    except DvcException:
        logging.getLogger("dvc").exception("")  # in DVC's words, which show the lines of dvc.yaml
        return 255
    except (OSError, sqlite3.Error) as error:  # a full disk, a folder that may not be written
        print(f"error: DVC cannot keep its notes in {Path('.dvc').resolve()}: {error}", file=sys.stderr)
        return 255
    for what, names in zip(("failed", "not run"), outcome, strict=True):
        if names:
            print(f"{what}: {', '.join(names)}", file=sys.stderr)
    return 1 if outcome.failed else 0


def serve(target: str) -> int:
    """Print the plan of ``target`` and serve it; the exit code, not 0 if there is none, which a line explains."""
    _set(SELDOM)
    from dvc.exceptions import DvcException

    try:
        with repository(Path.cwd()) as repo:
            plan = read_plan(repo, target=target)
            _set(PATIENT_THREADS)
            with Engine(plan, Path.cwd()) as engine:
                told = {"inputs": plan.inputs, "stale": sorted(plan.stale)}
                print(f"{PLAN}{json.dumps(told)}", flush=True)
                engine.serve()
    except (DvcException, ValueError) as error:
        print(f"{Path('dvc.yaml').resolve()}: {' '.join(str(error).split())}")
        return 255
    except (OSError, sqlite3.Error) as error:
        print(f"{Path('.dvc').resolve()}: DVC cannot keep its notes there: {error}")
        return 255
    return 0


def main() -> int:
    """The program: the exit code."""
    parser = argparse.ArgumentParser(prog="pipeline.orchestration.executor")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--unmade", type=Path, help="written if stages fail: what is left unmade, as JSON")
    parser.add_argument("--serve", metavar="TARGET", help="table1, table2 or all: what is called for, of dvc.yaml")
    arguments = parser.parse_args()
    platform.die_with_starter()
    return serve(arguments.serve) if arguments.serve else run("dvc.yaml", lambda: arguments.jobs, arguments.unmade)


if __name__ == "__main__":
    sys.exit(main())
