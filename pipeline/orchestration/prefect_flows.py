"""Prefect flows: the DVC stages as tasks that can be watched, retried and read one by one.

Tasks start their stages by the engine (``pipeline.orchestration.executor``). Everything here can be done without
Prefect: ``tables`` is ``dvc repro``, ``sweep`` is a series of ``dvc exp run -S``.
"""

import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
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

from pipeline.orchestration.executor import SELDOM, Engine, StageError
from pipeline.orchestration.plan import Plan, ask_plan
from pipeline.orchestration.repro import checked_settings, repro_lock
from pipeline.utils.environment import project_root
from pipeline.utils.errors import UserError
from pipeline.utils.processes import Group

RETRY_DELAY_SECONDS = 2
HASHES = r"params\.yaml|pipeline|stages|data/.*"
"""Columns of ``dvc exp show`` that hold hashes of files."""

_processes = Group()
"""Those of this flow run."""


@task(
    task_run_name="{name}",
    retries=1,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=lambda *_: not _processes.stopped,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(name: str, engine: Engine | None) -> State[None]:
    """Bring one DVC stage up to date, whose inputs are; None in place of an engine: it is.

    Its output is the task's log, line by line.
    """
    if not engine:
        get_run_logger().info("Stage '%s' didn't change, skipping", name)
        return Completed()
    return _state_after(lambda: engine.run_stage(name, _log))


def _state_after(work: Callable[[], object]) -> State[None]:
    """Do ``work``; a ``StageError`` is a failed state, since Prefect logs the traceback of an exception."""
    try:
        work()
    except StageError as error:
        return Failed(message=str(error))
    return Completed()


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Take the traceback from a record about a failed state, of which Prefect logs one that is none."""
    if record.exc_info and not record.exc_info[0]:
        record.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)


def _log(text: str) -> None:
    if text.strip():
        get_run_logger().info(text.rstrip())


@task(task_run_name="{overrides}", cache_policy=NO_CACHE, persist_result=False)
def run_experiment(overrides: list[str], root: Path) -> State[None]:
    """Run the pipeline once with ``overrides``, in a copy of the workspace: params.yaml here stays as it is."""
    options = [part for item in overrides for part in ("-S", item)]
    return _state_after(lambda: _dvc(["exp", "run", "--temp", *options], root))


def _dvc(arguments: Sequence[str], root: Path) -> None:
    """Run DVC, its output line by line in the Prefect log.

    Raises:
        StageError: it ended with another exit code than 0, or the flow is being stopped.
    """
    process = _processes.start([sys.executable, "-m", "dvc", *arguments], cwd=root, env=_environment(root))
    if not process:
        raise StageError("stopped before it began")
    assert process.stdout is not None
    for line in process.stdout:
        _log(line)
    if code := process.wait():
        raise StageError(f"dvc {' '.join(arguments)}: exit code {code}; its output is in this task's log")


@flow(name="tables")
def tables(target: Literal["table1", "table2", "all"] = "table2", parallel: int = 1) -> State[None]:
    """Make ``target`` and all it needs at the scale that params.yaml names, at most ``parallel`` stages at a time.

    A stage that fails stops only what depends on it. The run ends Failed, its message one line, when stages failed (it
    names them and those left out), params.yaml or dvc.yaml is wrong, or another run is at work in this folder.
    """

    def work(root: Path) -> None:
        if parallel < 1:
            raise UserError(f"parallel: given {parallel}, allowed: at least 1")
        plan = _planned(target, root)
        with Engine(plan, root, _environment(root), _processes) as engine:
            _make(plan, engine, parallel)

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
        _dvc(["exp", "show", "--md", "--only-changed", "--drop", HASHES, "--no-pager"], root)
        if failed := [", ".join(point) for point, state in states if not state.is_completed()]:
            raise StageError(f"failed: {'; '.join(failed)}")

    return _conclude(work)


def _conclude(work: Callable[[Path], None]) -> State[None]:
    """Do ``work`` under the lock, with valid settings; tell the user what went wrong in a line, not a traceback."""
    root = project_root()
    try:
        checked_settings(root)
        with repro_lock(root), _stopping_processes():
            work(root)
    except (UserError, StageError, OSError) as error:  # the last of a full disk, or of a folder that may not be written
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


def _planned(target: str, root: Path) -> Plan:
    try:
        return ask_plan(root, target=target, env=_environment(root))
    except UserError as error:
        raise UserError(f"{root / 'dvc.yaml'}: {' '.join(str(error).split())}") from None


@contextmanager
def _stopping_processes() -> Iterator[None]:
    """Leave no process behind when the flow is cancelled: that reaches it as an exception."""
    _processes.stopped = False
    try:
        yield
    except BaseException:
        _processes.stop()
        raise


def _make(plan: Plan, engine: Engine, parallel: int) -> None:
    """Run every stage that is stale and the inputs of which could be made, in the order planned.

    Raises:
        StageError: stages failed.
    """
    futures: dict[str, PrefectFuture[State[None]]] = {}
    completed: dict[str, bool] = {}
    while True:
        for name, needed in plan.inputs.items():
            ready = name not in futures and all(completed.get(other, False) for other in needed)
            if ready and len(futures) - len(completed) < parallel:
                made = [futures[other] for other in needed]
                current = name not in plan.stale
                futures[name] = run_stage.submit(name, None if current else engine, wait_for=made, return_state=False)
        running = {future: name for name, future in futures.items() if name not in completed}
        if not running:
            break
        future = next(as_completed(list(running)))
        future.wait()  # the callback behind as_completed may come before the final state
        completed[running[future]] = future.state.is_completed()
    if failed := [name for name, success in completed.items() if not success]:
        missing = [name for name in plan.inputs if name not in completed]
        raise StageError(f"failed: {', '.join(failed)}" + (f"; not run: {', '.join(missing)}" if missing else ""))


def _environment(root: Path) -> dict[str, str]:
    run_id = prefect.runtime.flow_run.id
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "FLOWTUNE_ROOT": str(root),
        "FLOWTUNE_RUN": f"prefect-{run_id}",
        **SELDOM,
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
