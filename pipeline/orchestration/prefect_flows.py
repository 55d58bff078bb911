"""Prefect flows: the DVC stages as tasks that can be watched, retried and read one by one.

A flow starts an engine (``pipeline.orchestration.executor``), and its tasks call for their stages there. Everything
here can be done without Prefect: ``tables`` is ``dvc repro``, ``sweep`` is a series of ``dvc exp run -S``.
"""

import itertools
import json
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any, Literal

import prefect
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import Flow
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from prefect.types.entrypoint import EntrypointType

from pipeline.orchestration.executor import PLAN
from pipeline.orchestration.plan import Inputs
from pipeline.orchestration.repro import checked_settings, repro_lock
from pipeline.utils import handover, processes
from pipeline.utils.environment import project_root
from pipeline.utils.errors import UserError

RETRY_DELAY_SECONDS = 2
HASHES = r"params\.yaml|pipeline|stages|data/.*"
"""Columns of ``dvc exp show`` that hold hashes of files."""


class StageError(Exception):
    """Stages that failed, or could not run; the message lists them."""


class _Commands:
    """The processes of this flow run; none starts once the flow is being stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Popen[str]] = set()
        self.stopped = False

    def start(self, module: Sequence[str], root: Path) -> Popen[str]:
        """Start a module with its arguments; its output comes from the ``stdout`` pipe.

        Raises:
            StageError: the flow is being stopped.
        """
        with self._lock:
            if self.stopped:
                raise StageError("stopped before it began")
            process = processes.start([sys.executable, "-m", *module], cwd=root, env=_environment(root))
            self._running.add(process)
        return process

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            running = set(self._running)
        processes.stop(running)


_commands = _Commands()


@contextmanager
def _engine(target: str, root: Path) -> Iterator[tuple[Inputs, frozenset[str]]]:
    """An engine that runs stages while the body runs: the inputs of each stage of ``target``, and which are stale.

    Raises:
        UserError: DVC cannot read the stages, or none makes ``target``.
    """
    process = _commands.start(["pipeline.orchestration.executor", "--serve", target], root)
    assert process.stdout is not None
    try:
        said = deque[str](maxlen=1)
        for line in process.stdout:
            if line.startswith(PLAN):
                plan = json.loads(line.removeprefix(PLAN))
                break
            said.append(line.strip())
        else:
            raise UserError(f"{''.join(said)} (exit code {process.wait()})")
        threading.Thread(target=said.extend, args=(process.stdout,), daemon=True).start()  # or it would wait for us
        yield plan["inputs"], frozenset(plan["stale"])
    finally:
        processes.stop([process])


def _log(lines: Iterable[str]) -> None:
    logger = get_run_logger()
    for line in lines:
        if text := line.rstrip():
            logger.info(text)


@task(
    task_run_name="{name}",
    retries=1,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=lambda *_: not _commands.stopped,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(name: str, root: Path, current: bool) -> None:
    """Bring one DVC stage up to date, whose inputs are; nothing is to be done for one that is ``current``.

    Its output is the task's log, line by line.

    Raises:
        StageError: it failed, or the engine is gone.
    """
    if current:
        get_run_logger().info("Stage '%s' didn't change, skipping", name)
        return
    source, sink = os.pipe()
    with os.fdopen(source, encoding="utf-8", errors="replace") as lines, Path(os.devnull).open("rb") as nothing:
        try:
            connection = handover.call(handover.socket_of(root), {"stage": name}, (nothing.fileno(), sink, sink))
        except OSError as error:
            raise StageError(f"{name}: its engine is gone: {error}") from None
        finally:
            os.close(sink)
        assert connection
        _log(lines)
    if code := handover.exit_code(connection):
        raise StageError(f"{name}: exit code {code}; its output is in this task's log")
    if code is None:
        raise StageError(f"{name}: its engine is gone")


@task(task_run_name="{overrides}", cache_policy=NO_CACHE, persist_result=False)
def run_experiment(overrides: list[str], root: Path) -> None:
    """Run the pipeline once with ``overrides``, in a copy of the workspace: params.yaml here stays as it is."""
    _run(["dvc", "exp", "run", "--temp", *(part for item in overrides for part in ("-S", item))], root)


def _run(module: Sequence[str], root: Path) -> None:
    """Run a module with its arguments, its output line by line in the Prefect log.

    Raises:
        StageError: it ended with another exit code than 0.
    """
    process = _commands.start(module, root)
    try:
        assert process.stdout is not None
        _log(process.stdout)
        if code := process.wait():
            raise StageError(f"{' '.join(module)}: exit code {code}; its output is in this task's log")
    finally:
        processes.stop([process])


@flow(name="tables")
def tables(target: Literal["table1", "table2", "all"] = "table2", parallel: int = 1) -> State[None]:
    """Make ``target`` and all it needs at the scale that params.yaml names, at most ``parallel`` stages at a time.

    A stage that fails stops only what depends on it. The run ends Failed, its message one line, when stages failed (it
    names them and those left out), params.yaml or dvc.yaml is wrong, or another run is at work in this folder.
    """

    def work(root: Path) -> None:
        if parallel < 1:
            raise UserError(f"parallel: given {parallel}, allowed: at least 1")
        with _engine(target, root) as (inputs, stale):
            _make(inputs, stale, root, parallel)

    return _conclude(work)


@flow(name="sweep")
def sweep(overrides: list[str]) -> State[None]:
    """Run one DVC experiment for each combination of values, one after another, then log how they compare.

    An experiment that fails stops no other. The run ends Failed as that of ``tables`` does.

    Args:
        overrides: settings with the values to try, like ``starter.pusht.finetune.nfe16.lr=1e-4,3e-4``.
    """

    def work(root: Path) -> None:
        states = [(point, run_experiment(point, root, return_state=True)) for point in combinations(overrides)]
        _run(["dvc", "exp", "show", "--md", "--only-changed", "--drop", HASHES, "--no-pager"], root)
        if failed := [", ".join(point) for point, state in states if not state.is_completed()]:
            raise StageError(f"failed: {'; '.join(failed)}")

    return _conclude(work)


def _conclude(work: Callable[[Path], None]) -> State[None]:
    """Do ``work`` under the lock, with valid settings; tell the user what went wrong in a line, not a traceback."""
    root = project_root()
    try:
        checked_settings(root)
        with repro_lock(root), _stopping_commands():
            work(root)
    except (UserError, StageError) as error:
        get_run_logger().error(str(error))
        return Failed(message=str(error))
    return Completed()


def combinations(overrides: Iterable[str]) -> list[list[str]]:
    """Every combination of the values in ``overrides``, each as arguments of ``dvc exp run -S``.

    Raises:
        UserError: an override is not of the form key=value[,value…].
    """
    axes = []
    for override in overrides:
        key, _, values = override.partition("=")
        choices = re.split(r",(?![^\[{]*[\]}])", values)  # a comma inside brackets belongs to the value
        if not key.strip() or not all(choice.strip() for choice in choices):
            raise UserError(f"overrides: got {override!r}, must look like starter.pusht.finetune.nfe16.lr=1e-4,3e-4")
        axes.append([f"{key.strip()}={choice.strip()}" for choice in choices])
    if not axes:
        raise UserError("overrides: got none, at least one key=value[,value…] is needed")
    return [list(point) for point in itertools.product(*axes)]


@contextmanager
def _stopping_commands() -> Iterator[None]:
    """Leave no process behind when the flow is cancelled: that reaches it as an exception."""
    _commands.stopped = False
    try:
        yield
    except BaseException:
        _commands.stop()
        raise


def _make(inputs: Inputs, stale: frozenset[str], root: Path, parallel: int) -> None:
    """Run every stage that is ``stale`` and the inputs of which could be made, in the order given.

    Raises:
        StageError: stages failed.
    """
    futures: dict[str, PrefectFuture[None]] = {}
    completed: dict[str, bool] = {}
    while True:
        for name, needed in inputs.items():
            ready = name not in futures and all(completed.get(other, False) for other in needed)
            if ready and len(futures) - len(completed) < parallel:
                made = [futures[other] for other in needed]
                futures[name] = run_stage.submit(name, root, name not in stale, wait_for=made, return_state=False)
        running = {future: name for name, future in futures.items() if name not in completed}
        if not running:
            break
        future = next(as_completed(list(running)))
        future.wait()  # the callback behind as_completed may come before the final state
        completed[running[future]] = future.state.is_completed()
    if failed := [name for name, success in completed.items() if not success]:
        missing = [name for name in inputs if name not in completed]
        raise StageError(f"failed: {', '.join(failed)}" + (f"; not run: {', '.join(missing)}" if missing else ""))


def _environment(root: Path) -> dict[str, str]:
    run_id = prefect.runtime.flow_run.id
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "FLOWTUNE_ROOT": str(root),
        "FLOWTUNE_RUN": f"prefect-{run_id}",
        "PYTHONUNBUFFERED": "1",
    }


def serve() -> None:
    """Serve the deployments until SIGINT or SIGTERM."""
    deployments = [
        _deployment(tables, "table1", target="table1"),
        _deployment(tables, "table2", target="table2"),
        _deployment(tables, "all", target="all"),
        _deployment(sweep, "sweep"),
    ]
    with suppress(KeyboardInterrupt):
        prefect.serve(*deployments, pause_on_shutdown=False, print_starting_message=False)


def _deployment(of: Flow[..., Any], name: str, **parameters: str) -> RunnerDeployment:
    # By module: a file path would be looked for below the working directory.
    made = of.to_deployment(name, parameters=parameters, entrypoint_type=EntrypointType.MODULE_PATH)
    assert isinstance(made, RunnerDeployment)  # a coroutine only where an event loop runs
    return made
