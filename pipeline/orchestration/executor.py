"""What ``dvc repro --keep-going`` does, with stages that do not need each other side by side.

``python -m pipeline.orchestration.executor [--jobs N] [FILE]``, in the root, brings FILE (dvc.yaml) and what it needs
up to date. DVC decides what is out of date, runs it and keeps its cache and lock; here is decided when each stage has
its turn. It
has it in a process forked from this one, which has read dvc.yaml and dvc.lock for all of them: 0.1 s of overhead each,
where ``dvc repro --single-item`` has 3 s. It has also imported what the stage's program does, if another stage of the
kind has run before: 3 to 10 s less. Where forking is not safe (macOS), each stage has a new process instead.
Stages wait for free memory, unless nothing else is at work, by the needs measured of each kind (``needs``).
"""

import argparse
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.orchestration.children import Children, Work, interrupts
from pipeline.orchestration.lockfile import write_entry
from pipeline.orchestration.needs import Room, need_of, read_table
from pipeline.orchestration.output import PROGRESS_SECONDS, Screen, on_terminal, screen
from pipeline.orchestration.partial import write_unmade
from pipeline.orchestration.preload import Preloaded, Program, program_of
from pipeline.utils import platform

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage

Inputs = Mapping[str, Sequence[str]]  # each stage with those others whose outputs it reads

MAIN_ROWS = "evaluate_rollouts"
"""The stage that makes the rows of flow matching and of its fine-tuning; others make those beside them."""

INTERRUPTED = 130
NOT_LOADED = 75  # of a work that wants its program imported here first, and then to be begun anew

# Where threads outnumber cores, one that spins while it waits keeps the core from the one that it waits for: two
# trainings of two threads each on two cores become 30 times slower. oneDNN's convolutions spin all the same,
# so --jobs should leave each stage the cores that its ``threads`` ask for.
PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
SELDOM = {"TQDM_MININTERVAL": str(PROGRESS_SECONDS)}


class Outcome(NamedTuple):
    """Stages that failed, and those not run since they need one that did."""

    failed: list[str]
    not_run: list[str]


def bring_up_to_date(file: str, jobs: int, unmade: Path | None = None) -> Outcome:
    """Bring the pipeline ``file``, in the current folder, and what it needs up to date, at most ``jobs`` at a time.

    Args:
        unmade: where to write, if stages fail, what is left unmade (see ``pipeline.orchestration.partial``).

    Raises:
        DvcException: DVC cannot read the pipelines.
        KeyboardInterrupt: SIGINT came; no stage is left at work.
    """
    from dvc.repo import Repo
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # the monitor would be a thread in a process that forks
    with Repo(_wait_for_lock=True) as repo, _params_found_by_parts(), _params_read_once():
        stages, inputs = outdated(repo, file)
        if not stages:
            print("Data and pipelines are up to date.")
        programs = Preloaded()
        works: dict[str, Work] = {name: partial(reproduce, stage, programs) for name, stage in stages.items()}
        if not platform.FORK_IS_SAFE:
            works = {name: [sys.executable, "-m", "pipeline.orchestration.executor", "--only", name] for name in stages}
        table = read_table()
        room = Room({name: need_of(programs_of(stage), table) for name, stage in stages.items()})

        def load(name: str) -> None:
            for program in programs_of(stages[name]):
                programs.load(program)

        with screen() if jobs > 1 else nullcontext() as to, _programs_forked(programs):
            outcome = in_order(works, inputs, jobs, to, load, room)
        if unmade and outcome.failed:
            failed, not_run = ([stages[name] for name in names] for names in outcome)
            write_unmade(unmade, Path(repo.root_dir), failed, not_run)
        return outcome


def bring_one_up_to_date(name: str) -> int:
    """Bring the stage ``name``, whose inputs are, up to date: the exit code.

    Raises:
        DvcException: DVC cannot read the pipelines, or knows no such stage.
    """
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo, _params_found_by_parts(), _params_read_once():
        return reproduce(repo.stage.load_one(name=name))


def outdated(repo: "Repo", file: str) -> tuple[dict[str, "Stage"], Inputs]:
    """The stages of ``file``, and those they need, that are out of date or read from such; inputs come first.

    One that reads from a stage out of date may turn out to be up to date itself when its turn comes.

    Raises:
        DvcException: DVC cannot read the pipelines.
    """
    from dvc.repo import lock_repo
    from dvc.repo.reproduce import get_active_graph, plan_repro

    with lock_repo(repo):
        graph = get_active_graph(repo.index.graph)
        # not DVC's collect_stages, which reads all pipelines and locks once more
        wanted = set(plan_repro(graph, [stage for stage in graph if stage.path_in_repo == file]))
        found: dict[Stage, list[str]] = {}
        # sorted here: DVC's own order differs from run to run
        for stage in TopologicalSorter({node: list(graph.successors(node)) for node in graph}).static_order():
            if stage in wanted:
                inputs = [other.addressing for other in graph.successors(stage) if other in found]
                if inputs or stage.changed():
                    found[stage] = inputs
    return {stage.addressing: stage for stage in found}, {stage.addressing: found[stage] for stage in found}


@contextmanager
def _params_read_once() -> Iterator[None]:
    """While the body runs, DVC parses a params file again only when it has changed, and not several times for every
    stage, which takes it a second. Processes forked meanwhile have what this one has parsed."""
    from dvc.dependency import param

    load, read = param.load_path, dict[str, tuple[tuple[int, int], Any]]()

    def once(path: str, fs: Any, **options: Any) -> Any:
        found = Path(path).stat()
        version = found.st_ino, found.st_ctime_ns
        if path not in read or read[path][0] != version:
            read[path] = version, load(path, fs, **options)
        return read[path][1]

    param.load_path = once
    try:
        yield
    finally:
        param.load_path = load


@contextmanager
def _params_found_by_parts() -> Iterator[None]:
    """While the body runs, DVC finds a key in a params file part by part: its own search, made for patterns, visits all
    of the file's keys for each that a stage depends on."""
    from dvc.dependency import param

    search = param.dpath
    param.dpath = SimpleNamespace(get=_value)
    try:
        yield
    finally:
        param.dpath = search


def _value(params: Any, key: str, separator: str) -> Any:
    """The value of a key such as ``starter.pusht.seed``; KeyError where there is none."""
    for part in key.split(separator):
        if not isinstance(params, Mapping):
            raise KeyError(key)
        params = params[part]
    return params


@contextmanager
def _programs_forked(programs: Preloaded) -> Iterator[None]:
    """While the body runs, DVC runs what is among ``programs`` in a process forked from its own."""
    from dvc.stage import run
    from dvc.stage.exceptions import StageCmdFailedError

    plain = run._run

    def run_command(executable: str, command: str, *, cwd: str, env: Mapping[str, str], **options: Any) -> None:
        program = program_of(command, cwd, env)
        if program is None or program not in programs or not programs.is_current():
            plain(executable, command, cwd=cwd, env=env, **options)
        elif code := programs.run(program, env):
            raise StageCmdFailedError(command, code)

    run._run = run_command
    try:
        yield
    finally:
        run._run = plain


def programs_of(stage: "Stage") -> list[Program]:
    """What ``stage`` runs of the programs that this Python can run."""
    commands = stage.cmd if isinstance(stage.cmd, list) else (stage.cmd or "").splitlines()
    found = (program_of(command, stage.wdir, os.environ) for command in commands)
    return [program for program in found if program]


def reproduce(stage: "Stage", programs: Preloaded | None = None) -> int:
    """Do what ``dvc repro --single-item`` does for ``stage``, but replace dvc.lock as a whole; return the exit code.

    ``NOT_LOADED`` if it is out of date and one of its programs is not yet among ``programs``, if any are given.
    """
    from dvc.repo import lock_repo

    try:
        with lock_repo(stage.repo), stage.repo.scm_context(quiet=True):
            preload = [] if programs is None else [one for one in programs_of(stage) if one not in programs]
            if preload and stage.changed():
                return NOT_LOADED
            if stage.reproduce():
                write_entry(stage)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # DVC goes on after any, too
        logging.getLogger("dvc").error("failed to reproduce '%s': %s", stage.addressing, error)
        return 1
    return 0


def in_order(
    works: Mapping[str, Work],
    inputs: Inputs,
    jobs: int,
    to: Screen | None,
    load: Callable[[str], None],
    room: Room,
) -> Outcome:
    """Do the works in processes, inputs first; one that fails stops only those that need it.

    Args:
        to: where their output goes; None: where that of this process goes.
        load: called, in this process, for a work that ended with ``NOT_LOADED``, which is then begun anew.
        room: of the memory that they need.

    Raises:
        KeyboardInterrupt: SIGINT came.
    """
    urgency = {name: place for place, name in enumerate(by_urgency(inputs))}
    sorter = TopologicalSorter(inputs)
    sorter.prepare()
    ready: list[str] = []
    made, failed, told = set[str](), list[str](), set[str]()
    children = Children(to)
    with interrupts() as received:
        while not received:
            ready = sorted([*ready, *sorter.get_ready()], key=urgency.__getitem__)
            for name in list(ready):
                if len(children) >= jobs:
                    break
                if not (lack := room.lack(name, children.pids())):
                    ready.remove(name)
                    children.start(name, works[name])
                elif to and name not in told:
                    told.add(name)
                    to.line(name, lack, sys.stderr)
            if not children:
                break
            for name, code in children.wait():
                if code == NOT_LOADED:
                    load(name)
                    ready.append(name)
                elif code == 0:
                    made.add(name)
                    sorter.done(name)
                else:
                    failed.append(name)
        if received:
            children.stop()
            raise KeyboardInterrupt
    return Outcome(failed, [name for name in works if name not in made and name not in failed])


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


def main() -> int:
    """The program: exit code 0, 1 where stages failed, 130 after SIGINT, 255 where DVC cannot work."""
    parser = argparse.ArgumentParser(prog="pipeline.orchestration.executor")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--unmade", type=Path, help="written if stages fail: what is left unmade, as JSON")
    parser.add_argument("file", nargs="?", default="dvc.yaml")
    parser.add_argument("--only", metavar="STAGE", help="one stage of dvc.yaml, whose inputs are up to date")
    arguments = parser.parse_args()
    platform.die_with_starter()
    if arguments.jobs > 1:
        for name, value in (PATIENT_THREADS | ({} if on_terminal() else SELDOM)).items():
            os.environ.setdefault(name, value)
    try:
        from dvc.exceptions import DvcException

        if arguments.only:
            return bring_one_up_to_date(arguments.only)
        outcome = bring_up_to_date(arguments.file, arguments.jobs, arguments.unmade)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is passed on by `make repro` once more
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


if __name__ == "__main__":
    sys.exit(main())
