"""Prefect flows: the DVC stages as tasks that can be watched, retried and read one by one.

Everything here can be done without Prefect: ``tables`` is ``dvc repro``, ``sweep`` is a series of ``dvc exp run -S``.
"""

import itertools
import os
import re
import sqlite3
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any, Literal

import prefect
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import Flow
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from prefect.types.entrypoint import EntrypointType

from pipeline.orchestration.executor import outdated
from pipeline.orchestration.repro import checked_settings, repro_lock
from pipeline.utils import processes
from pipeline.utils.environment import project_root
from pipeline.utils.errors import UserError

if TYPE_CHECKING:
    from dvc.repo import Repo

Graph = Mapping[str, frozenset[str]]  # each DVC stage with the stages whose outputs it reads

FINAL_STAGES = {
    "table1": ("tabulate_images", "draw_images"),
    "table2": ("tabulate", "tabulate_settings", "report_stability", "draw", "draw_toys"),
}
RETRY_DELAY_SECONDS = 2


class StageError(Exception):
    """Stages that failed, or could not run; the message lists them."""


class _Commands:
    """The processes of this flow run; none starts once the flow is being stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Popen[str]] = set()
        self.stopped = False

    def run(self, module: list[str], root: Path) -> None:
        """Run a module with its arguments, its output line by line in the Prefect log.

        Raises:
            StageError: it ended with another exit code than 0.
        """
        with self._lock:
            if self.stopped:
                raise StageError("stopped before it began")
            process = processes.start([sys.executable, "-m", *module], cwd=root, env=_environment(root))
            self._running.add(process)
        try:
            assert process.stdout is not None
            logger = get_run_logger()
            for line in process.stdout:
                if text := line.rstrip():
                    logger.info(text)
            if code := process.wait():
                raise StageError(f"{' '.join(module)}: exit code {code}; its output is in this task's log")
        finally:
            processes.stop([process])
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            running = set(self._running)
        processes.stop(running)


_commands = _Commands()


@task(
    task_run_name="{name}",
    retries=1,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=lambda *_: not _commands.stopped,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(name: str, root: Path, current: bool) -> None:
    """Bring one DVC stage up to date, whose inputs are; nothing is to be done for one that is ``current``."""
    if current:
        get_run_logger().info("Stage '%s' didn't change, skipping", name)
        return
    # not `dvc repro -s`, which writes dvc.lock in place: killed meanwhile, it leaves half
    _commands.run(["pipeline.orchestration.executor", "--only", name], root)


@task(task_run_name="{overrides}", cache_policy=NO_CACHE, persist_result=False)
def run_experiment(overrides: list[str], root: Path) -> None:
    """Run the pipeline once with ``overrides``, in a copy of the workspace: params.yaml here stays as it is."""
    _commands.run(["dvc", "exp", "run", "--temp", *(part for item in overrides for part in ("-S", item))], root)


@flow(name="tables")
def tables(target: Literal["table1", "table2", "all"] = "table2", parallel: int = 1) -> State[None]:
    """Make ``target`` and all it needs at the scale that params.yaml names, at most ``parallel`` stages at a time.

    A stage that fails stops only what depends on it. The run ends Failed, its message one line, when stages failed (it
    names them and those left out), params.yaml or dvc.yaml is wrong, or another run is at work in this folder.
    """

    def work(root: Path) -> None:
        if parallel < 1:
            raise UserError(f"parallel: given {parallel}, allowed: at least 1")
        _make(needed(read_graph(root), target), out_of_date(root), root, parallel)

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
        _commands.run(["dvc", "exp", "show", "--md", "--only-changed", "--no-pager"], root)
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


def read_graph(root: Path) -> Graph:
    """The stages of dvc.yaml, as DVC expands them for the scale and the tasks that params.yaml names.

    Studies, which have pipelines of their own and take hours, are left out.

    Raises:
        UserError: DVC cannot read them.
    """
    from dvc.stage import PipelineStage

    with _repository(root) as repo:
        graph = repo.index.graph
        stages = [s for s in graph if isinstance(s, PipelineStage) and s.path_in_repo == "dvc.yaml"]
        return {
            stage.name: frozenset(other.name for other in graph.successors(stage) if other in stages)
            for stage in stages
        }


def out_of_date(root: Path) -> frozenset[str]:
    """The stages of dvc.yaml that are out of date, or read from one that is.

    Raises:
        UserError: DVC cannot read them.
    """
    with _repository(root) as repo:
        stages, _ = outdated(repo, "dvc.yaml")  # by their addresses, seen from the folder that this process is in
        return frozenset(stage.name for stage in stages.values())


@contextmanager
def _repository(root: Path) -> Iterator["Repo"]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root), _wait_for_lock=True) as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"{root / 'dvc.yaml'}: {' '.join(str(error).split())}") from error
    except (OSError, sqlite3.Error) as error:  # a full disk, a folder that may not be written
        raise UserError(f"{root / '.dvc'}: DVC cannot keep its notes there: {error}") from error


def needed(graph: Graph, target: str) -> Graph:
    """The part of ``graph`` that ``target`` (a key of ``FINAL_STAGES``, or ``all``) needs.

    Raises:
        UserError: ``graph`` has no stage that makes ``target``.
    """
    if target == "all":
        return graph
    kinds = FINAL_STAGES[target]
    pending = [name for name in graph if name.partition("@")[0] in kinds]
    if not pending:
        raise UserError(f"dvc.yaml: no stage makes {target}; it needs one of {', '.join(kinds)}")
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending.extend(graph[name])
    return {name: inputs for name, inputs in graph.items() if name in found}


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


def _make(graph: Graph, pending: Collection[str], root: Path, parallel: int) -> None:
    """Run every stage of ``graph`` that is ``pending`` and whose inputs could be made.

    Raises:
        StageError: stages failed.
    """
    futures: dict[str, PrefectFuture[None]] = {}
    completed: dict[str, bool] = {}
    while True:
        for name, inputs in graph.items():
            ready = name not in futures and all(completed.get(other, False) for other in inputs)
            if ready and len(futures) - len(completed) < parallel:
                made = [futures[other] for other in inputs]
                futures[name] = run_stage.submit(name, root, name not in pending, wait_for=made, return_state=False)
        running = {future: name for name, future in futures.items() if name not in completed}
        if not running:
            break
        future = next(as_completed(list(running)))
        future.wait()  # the callback behind as_completed may come before the final state
        completed[running[future]] = future.state.is_completed()
    if failed := [name for name, success in completed.items() if not success]:
        missing = [name for name in graph if name not in completed]
        raise StageError(f"failed: {', '.join(failed)}" + (f"; not run: {', '.join(missing)}" if missing else ""))


def _environment(root: Path) -> dict[str, str]:
    run_id = prefect.runtime.flow_run.id
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "FLOWTUNE_ROOT": str(root),
        "FLOWTUNE_RUN": f"prefect-{run_id}",
        "PYTHONUNBUFFERED": "1",
        "TQDM_MININTERVAL": "30",  # each refresh of a progress bar is a line of the log
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
