"""Run DVC stages, independent ones side by side.

Each stage is a separate ``dvc repro --single-item``: DVC decides what is out of date, runs it, and keeps its cache and
lock file. The engine starts a stage as soon as there is memory for it (``needs``). It also starts a program server,
which spares stages their imports (``program_server``). ``run`` and Prefect's tasks (``prefect_flows``) use the engine.

``python -m pipeline.orchestration.executor [--jobs N]``, in the root, brings dvc.yaml up to date.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple, Self

from pipeline.orchestration import lockguard
from pipeline.orchestration.needs import Room, need_of, read_table
from pipeline.orchestration.output import PROGRESS_SECONDS, Screen, on_terminal
from pipeline.orchestration.partial import write_unmade
from pipeline.orchestration.plan import Plan, ask_plan, programs_of
from pipeline.orchestration.restore import forget_note, note_stage, put_back
from pipeline.utils import platform, processes
from pipeline.utils.errors import UserError
from pipeline.utils.handover import SERVER

INTERRUPTED = 130
POLL_SECONDS = 0.5

# If threads outnumber cores, a thread that spins while it waits takes the core from the thread that it waits for: two
# trainings of two threads each on two cores become 30 times slower. oneDNN's convolutions spin regardless, so --jobs
# should leave each stage as many cores as its ``threads``.
PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
SELDOM = {"TQDM_MININTERVAL": str(PROGRESS_SECONDS)}
"""For progress bars where each refresh is a line that stays; tqdm reads it on import."""

Say = Callable[[str], object]
"""Shows a piece of output, which ends in a newline, or in ``\\r`` if the next piece replaces it."""


class StageError(Exception):
    """Raised for stages that failed or could not run; the message names them."""


class Outcome(NamedTuple):
    """Stages that failed, and stages not run since they need a failed one."""

    failed: list[str]
    not_run: list[str]


class Engine:
    """Runs single stages of a plan on request; the end of its context stops all processes."""

    def __init__(
        self,
        plan: Plan,
        root: Path,
        env: Mapping[str, str],
        stages: processes.Group | None = None,
        *,
        pull: bool = False,
    ) -> None:
        """Start the lock guard and the program server of the project in ``root``.

        Args:
            env, stages: the environment of DVC, and the process group of the stages.
            pull: whether to take results of other machines from DVC's remote.
        """
        self.commands, self.root, self._pull = plan.commands, root, ["--pull"] if pull else []
        table = read_table()
        needs = {name: need_of(programs_of(command), table) for name, command in plan.commands.items()}
        self._room, self._socket = Room(needs), root / ".flowtune" / "programs.sock"
        self._env = {"PYTHONUNBUFFERED": "1"} | PATIENT_THREADS | dict(env)
        self._stages, self._servers = stages or processes.Group(), processes.Group()
        self._starting, self._running = threading.Lock(), set[str]()
        lockguard.guard(root, os.getpid())
        if platform.FORK_IS_SAFE:
            server = [sys.executable, "-m", "pipeline.orchestration.program_server", str(self._socket)]
            self._servers.start(server, cwd=root, env=self._env)
            self._env[SERVER] = str(self._socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def stopped(self) -> bool:
        """Whether the engine is stopped; no stage starts then."""
        return self._stages.stopped

    def stop(self) -> None:
        """Interrupt all running stages, as Ctrl-C does, and wait for their end; no stage starts afterwards."""
        self._stages.stop(signal.SIGINT)
        self._servers.stop()
        self._socket.unlink(missing_ok=True)

    def run_stage(self, name: str, say: Say, *, only_take: bool = False) -> None:
        """Bring a stage with up-to-date inputs up to date; pass its output to ``say`` piece by piece.

        Args:
            only_take: take its results from DVC's remote, where another machine pushed them; do not run it here.

        Raises:
            StageError: it failed, or the engine was stopped.
        """
        try:
            with self._started(name, say, only_take) as process:
                assert process.stdout
                process.stdout.reconfigure(newline="")  # type: ignore[attr-defined]
                for piece in process.stdout:
                    say(piece)
                code = process.wait()
        finally:
            self._running.discard(name)
        if code:
            put_back(self.root)
            raise StageError(f"{name}: exit code {code}; see its output")
        forget_note(self.root, name)

    def _started(self, name: str, say: Say, only_take: bool) -> Popen[str]:
        """Start the process of a stage as soon as there is memory for it; raise a ``StageError`` if stopped before."""
        told = False
        while not self.stopped:
            with self._starting:
                lack = None if only_take else self._room.lack(name, self._running)
                if not lack:
                    note_stage(self.root, name)  # DVC removes its reports before the program begins
                    dvc = ["pipeline.orchestration.run_cache"] if self._pull else ["dvc"]
                    dvc += ["--only-take"] if only_take else []
                    repro = ["--wait-for-lock", "repro", *self._pull, "--single-item", name]
                    command = [sys.executable, "-m", *dvc, *repro]
                    if process := self._stages.start(command, cwd=self.root, env=self._env):
                        if not only_take:
                            self._running.add(name)
                        return process
            if lack and not told:
                say(f"{lack}\n")
                told = True
            time.sleep(POLL_SECONDS)
        raise StageError(f"{name}: stopped before its start")


def run(plan: Plan, engine: Engine, jobs: int, screen: Screen) -> Outcome:
    """Bring stale stages up to date, inputs first; a failed stage blocks only the stages that need it.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; no stage is left running.
    """
    inputs = plan.stale_inputs
    urgency = {name: place for place, name in enumerate(inputs)}
    sorter = TopologicalSorter(inputs)
    sorter.prepare()
    ready, failed = list[str](), list[str]()
    running: dict[Future[None], str] = {}
    made = set[str]()
    with interruptible(), ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                ready = sorted([*ready, *sorter.get_ready()], key=urgency.__getitem__)
                while ready and len(running) < jobs:
                    name = ready.pop(0)
                    running[pool.submit(engine.run_stage, name, partial(screen.show, name))] = name
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    screen.ended(name)
                    try:
                        future.result()
                    except StageError:
                        failed.append(name)
                    else:
                        made.add(name)
                        sorter.done(name)
        except BaseException:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a second signal must not break the stopping
            engine.stop()
            raise
    return Outcome(failed, [name for name in inputs if name not in made and name not in failed])


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise ``KeyboardInterrupt`` in the body."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def bring_up_to_date(file: str, jobs: Callable[[], int], unmade: Path | None = None) -> int:
    """Bring the pipeline ``file`` in the current folder and its inputs up to date; return the exit code.

    Args:
        jobs: returns the number of stages at a time; called only if stages are stale.
        unmade: the file to write if stages fail (see ``pipeline.orchestration.partial``).
    """
    try:
        plan = ask_plan(Path.cwd(), file)
        if not plan.stale:
            print("Data and pipelines are up to date.")
            return 0
        env = dict(os.environ) | ({} if on_terminal() else SELDOM)
        with Engine(plan, Path.cwd(), env) as engine, Screen() as screen:
            outcome = run(plan, engine, jobs(), screen)
    except KeyboardInterrupt:
        return INTERRUPTED
    except UserError as error:
        print(error, file=sys.stderr)
        return 255
    if unmade and outcome.failed:
        write_unmade(unmade, plan, outcome.failed, outcome.not_run)
    for what, names in zip(("failed", "not run"), outcome, strict=True):
        if names:
            print(f"{what}: {', '.join(names)}", file=sys.stderr)
    return 1 if outcome.failed else 0


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="pipeline.orchestration.executor")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--unmade", type=Path, help="JSON file for the missing outputs if stages fail")
    arguments = parser.parse_args()
    platform.die_with_starter()
    return bring_up_to_date("dvc.yaml", lambda: arguments.jobs, arguments.unmade)


if __name__ == "__main__":
    sys.exit(main())
