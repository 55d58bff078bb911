"""Run DVC's stages, those that do not need each other side by side.

Each stage is a ``dvc repro --single-item`` of its own: DVC decides what is out of date, runs it and keeps its cache and
lock. The engine decides when: it starts a stage when there is memory for it (``needs``), and a server of programs that
spares each the time of its imports (``program_server``). ``run`` here and Prefect's tasks (``prefect_flows``) both
start stages by it.

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

# Where threads outnumber cores, one that spins while it waits keeps the core from the one that it waits for: two
# trainings of two threads each on two cores become 30 times slower. oneDNN's convolutions spin all the same,
# so --jobs should leave each stage the cores that its ``threads`` ask for.
PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
SELDOM = {"TQDM_MININTERVAL": str(PROGRESS_SECONDS)}
"""For progress bars where each refresh is a line that stays; read when tqdm is imported."""

Say = Callable[[str], object]
"""Shows a piece of output, which ends in a newline, or in ``\\r`` where the next one takes its place."""


class StageError(Exception):
    """Stages that failed, or could not run; the message lists them."""


class Outcome(NamedTuple):
    """Stages that failed, and those not run since they need one that did."""

    failed: list[str]
    not_run: list[str]


class Engine:
    """Runs the stages of a plan, each when it is called for; a context, at whose end no process is left."""

    def __init__(
        self,
        plan: Plan,
        root: Path,
        env: Mapping[str, str],
        stages: processes.Group | None = None,
        *,
        pull: bool = False,
    ) -> None:
        """Of the project in ``root``, with the environment that DVC starts in, and the group that stages belong to.

        Args:
            pull: whether what another machine has made is taken from DVC's remote.
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
        """Whether no stage starts any more."""
        return self._stages.stopped

    def stop(self) -> None:
        """Interrupt what runs, as Ctrl-C in a terminal does, and wait until it is gone; nothing starts any more."""
        self._stages.stop(signal.SIGINT)
        self._servers.stop()
        self._socket.unlink(missing_ok=True)

    def run_stage(self, name: str, say: Say, *, only_take: bool = False) -> None:
        """Bring a stage up to date, whose inputs are, with its output said piece by piece.

        Args:
            only_take: what it makes is taken from DVC's remote, as another machine made it; it does not run here.

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
            raise StageError(f"{name}: exit code {code}; its output says why")
        forget_note(self.root, name)

    def _started(self, name: str, say: Say, only_take: bool) -> Popen[str]:
        """The process of a stage, as soon as there is memory for it, if it runs."""
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
        raise StageError(f"{name}: stopped before it began")


def run(plan: Plan, engine: Engine, jobs: int, screen: Screen) -> Outcome:
    """Bring what is stale up to date, inputs first; a stage that fails stops only those that need it.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; no stage is left at work.
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
                signal.signal(number, signal.SIG_IGN)  # another must not break what ends now
            engine.stop()
            raise
    return Outcome(failed, [name for name in inputs if name not in made and name not in failed])


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM, as SIGINT, raise ``KeyboardInterrupt`` in the body."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def bring_up_to_date(file: str, jobs: Callable[[], int], unmade: Path | None = None) -> int:
    """Bring the pipeline ``file``, in the current folder, and what it needs up to date: the exit code.

    Args:
        jobs: how many stages may run at a time; asked if there are any.
        unmade: where to write, if stages fail, what is left unmade (see ``pipeline.orchestration.partial``).
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
    """The program: the exit code."""
    parser = argparse.ArgumentParser(prog="pipeline.orchestration.executor")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--unmade", type=Path, help="written if stages fail: what is left unmade, as JSON")
    arguments = parser.parse_args()
    platform.die_with_starter()
    return bring_up_to_date("dvc.yaml", lambda: arguments.jobs, arguments.unmade)


if __name__ == "__main__":
    sys.exit(main())
