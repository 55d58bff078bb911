"""Run DVC stages as Prefect tasks with their own states, retries and logs, here or on other machines.

Tasks start stages through the engine (``pipeline.orchestration.executor``). Everything here works without Prefect too:
``tables`` is ``dvc repro``, ``sweep`` is a series of ``dvc exp run -S``. With a ``pool``, workers run the stages
(``pipeline.orchestration.worker_flows``), and the same commands take their results from DVC's remote.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import prefect
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import State, StateType
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Cancelled, Completed

from pipeline.orchestration.executor import Engine, StageError
from pipeline.orchestration.flow_runs import (
    deployment_of,
    environment,
    log,
    push,
    run_dvc,
    started,
    state_after,
    stopping_processes,
)
from pipeline.orchestration.places import place_of
from pipeline.orchestration.plan import ALL, Plan, ask_plan
from pipeline.orchestration.pool import Pool
from pipeline.orchestration.repro import checked_settings, repro_lock, study_pipeline
from pipeline.settings import schema
from pipeline.tracking.store import drain
from pipeline.utils.environment import project_root
from pipeline.utils.errors import UserError

RETRY_DELAY_SECONDS = 2
HASHES = r"params\.yaml|pipeline|stages|data/.*"
"""Columns of ``dvc exp show`` with hashes of files."""

Target = Literal["table1", "table2", "all", "study"]


@task(
    task_run_name="{name}",
    retries=1,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=lambda *_: not started.stopped,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(name: str, engine: Engine | None, pool: Pool | None = None) -> State[None]:
    """Bring one DVC stage with up-to-date inputs up to date; no ``engine`` means that it is already.

    The task's log shows its output; with a ``pool``, the log of the worker's flow run of the same name does.
    """
    if not engine:
        get_run_logger().info("Stage '%s' didn't change, skipping", name)
        return Completed()

    def work() -> None:
        place = place_of(engine.commands[name])
        if pool and place != "head":
            pool.run_stage(name, place)
            engine.run_stage(name, log, only_take=True)
        else:
            engine.run_stage(name, log)
            if pool:
                push(engine.root)

    return state_after(work)


@task(task_run_name="{overrides}", cache_policy=NO_CACHE, persist_result=False)
def run_experiment(overrides: list[str], root: Path, pool: Pool | None = None) -> State[None]:
    """Run the pipeline once with ``overrides`` in a copy of the workspace; params.yaml here stays unchanged."""
    options = [part for item in overrides for part in ("-S", item)]

    def work() -> None:
        if pool:
            pool.run_experiment(overrides)
        run_dvc(["exp", "run", "--temp", *(["--pull"] if pool else []), *options], root)

    return state_after(work)


@flow(name="tables")
def tables(target: Target = "table2", parallel: int = 1, pool: str = "") -> State[None]:
    """Make ``target`` and its inputs at the scale in params.yaml, at most ``parallel`` stages at a time.

    A failed stage blocks only the stages that depend on it. The run ends Failed with a one-line message if stages
    failed (it names them and the skipped ones), if params.yaml or dvc.yaml is wrong, or if another run is active here.

    Args:
        pool: the work pool whose workers run all but the shortest stages; empty: all run on this machine.
    """

    def work(root: Path) -> None:
        if parallel < 1:
            raise UserError(f"parallel: given {parallel}, allowed: at least 1")
        make_stages(_planned(target, root), root, parallel, pool)

    return _conclude(work)


@flow(name="sweep")
def sweep(overrides: list[str], pool: str = "") -> State[None]:
    """Run one DVC experiment for each combination of values, then log a comparison.

    A failed experiment stops no other. The run ends Failed for the same reasons as ``tables``.

    Args:
        overrides: settings with the values to try, like ``starter.pusht.finetune.nfe16.lr=1e-4,3e-4``.
        pool: the work pool whose workers run the experiments side by side; empty: one after another on this machine.
    """

    def work(root: Path) -> None:
        points = combinations(overrides)
        workers = Pool(pool, root) if pool else None
        states = _side_by_side(points, root, workers) if workers else _in_turn(points, root)
        run_dvc(["exp", "show", "--md", "--only-changed", "--drop", HASHES, "--no-pager"], root)
        pairs = zip(points, states, strict=True)
        if failed := [", ".join(point) for point, state in pairs if not state.is_completed()]:
            raise StageError(f"failed: {'; '.join(failed)}")

    return _conclude(work)


def _in_turn(points: Sequence[list[str]], root: Path) -> Sequence[State[Any]]:
    return [run_experiment(point, root, return_state=True) for point in points]


def _side_by_side(points: Sequence[list[str]], root: Path, workers: Pool) -> Sequence[State[Any]]:
    futures = [run_experiment.submit(point, root, workers, return_state=False) for point in points]
    for future in futures:
        future.wait()
    return [future.state for future in futures]


def _conclude(work: Callable[[Path], None]) -> State[None]:
    """Do ``work`` under the lock with valid settings; turn user errors into one line instead of a traceback."""
    root = project_root()

    def locked() -> None:
        checked_settings(root)
        with repro_lock(root), stopping_processes():
            work(root)

    state = state_after(locked)
    drain()  # or a killed stage stays RUNNING in MLflow
    return state


def combinations(overrides: Iterable[str]) -> list[list[str]]:
    """Return every combination of the values in ``overrides``, each as arguments of ``dvc exp run -S``.

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


def _planned(target: Target, root: Path) -> Plan:
    file = "dvc.yaml"
    if target == "study":
        file, target = study_pipeline(schema.load(root / "params.yaml").scale, root).as_posix(), "all"
    try:
        return ask_plan(root, file, ALL if target == "all" else target, env=environment(root))
    except UserError as error:
        raise UserError(f"{root / file}: {' '.join(str(error).split())}") from None


def make_stages(plan: Plan, root: Path, parallel: int, pool: str = "") -> None:
    """Bring ``plan`` up to date in ``root``, at most ``parallel`` stages at a time, on workers of ``pool`` if given.

    Raises:
        StageError: stages failed.
        UserError: see ``Pool``.
    """
    workers = Pool(pool, root) if pool else None
    if workers:
        push(root)
    with Engine(plan, root, environment(root), started, pull=bool(pool)) as engine:
        _make(plan, engine, parallel, workers)


def _make(plan: Plan, engine: Engine, parallel: int, pool: Pool | None) -> None:
    """Run each stale stage whose inputs are complete, in the planned order; raise a ``StageError`` if any failed."""
    futures: dict[str, PrefectFuture[State[None]]] = {}
    completed: dict[str, bool] = {}
    while True:
        for name, needed in plan.inputs.items():
            ready = name not in futures and all(completed.get(other, False) for other in needed)
            if ready and len(futures) - len(completed) < parallel:
                made = [futures[other] for other in needed]
                current = name not in plan.stale
                own = None if current else engine
                futures[name] = run_stage.submit(name, own, pool, wait_for=made, return_state=False)
        running = {future: name for name, future in futures.items() if name not in completed}
        if not running:
            break
        future = next(as_completed(list(running)))
        future.wait()  # the callback behind as_completed may come before the final state
        completed[running[future]] = future.state.is_completed()
    if failed := [name for name, success in completed.items() if not success]:
        missing = [name for name in plan.inputs if name not in completed]
        raise StageError(f"failed: {', '.join(failed)}" + (f"; not run: {', '.join(missing)}" if missing else ""))


def serve() -> None:
    """Serve the deployments until SIGINT or SIGTERM, then cancel unfinished runs."""
    deployments = [
        deployment_of(tables, "table1", parameters={"target": "table1"}),
        deployment_of(tables, "table2", parameters={"target": "table2"}),
        deployment_of(tables, "all", parameters={"target": "all"}),
        deployment_of(tables, "study", parameters={"target": "study"}),
        deployment_of(sweep, "sweep"),
    ]
    try:
        with suppress(KeyboardInterrupt):
            prefect.serve(*deployments, pause_on_shutdown=False, print_starting_message=False)
    finally:
        _cancel_unfinished()


def _cancel_unfinished() -> None:
    """Cancel the server's unfinished flow runs, except those of work pools, which workers run."""
    unfinished = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=unfinished))):
            if not run.work_pool_name:
                client.set_flow_run_state(run.id, Cancelled(message="make ui was stopped"), force=True)
