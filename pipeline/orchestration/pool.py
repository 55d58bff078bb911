"""Submit stages to a Prefect work pool, wait for them and cancel them.

Prefect assigns them to workers, limits how many run at a time, and detects lost workers.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from pipeline.orchestration.executor import StageError
from pipeline.orchestration.flow_runs import deployment_of, log, started
from pipeline.orchestration.places import Place
from pipeline.orchestration.worker_flows import Origin, run_experiment_here, run_stage_here
from pipeline.utils.errors import UserError

QUEUES = ("gpu", "cpu")
"""Queues of every pool by priority; workers with a GPU serve both."""

HEARTBEAT_SECONDS = 30
"""The minimum that Prefect accepts."""

LOST = "FlowTune: a worker that is gone"
_POLL_SECONDS, _SELDOM_SECONDS = 2.0, 60.0
_POLL_SHARE = 1 / 50
"""Pause between two requests for a stage's state, relative to the time that the stage has taken."""
_PATIENCE_SECONDS = 20.0
_GPU_SECONDS = 30.0
"""How long the answer is cached whether there are workers with a GPU."""
_UNFINISHED = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING)


class Pool:
    """Work pool ``name`` of the current Prefect server, for a run of the project in ``root``.

    Raises:
        UserError: the pool does not exist, DVC has no remote, or the project's code is not committed.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.origin = name, Origin.of(root)
        require_remote(root)
        require_pool(name)
        flows = run_stage_here, run_experiment_here
        made = {flow.name: deployment_of(flow, name, work_pool_name=name).apply() for flow in flows}
        self._deployments = cast(dict[str, UUID], made)
        self._gpu = (-math.inf, False)
        crash_lost_runs()

    def run_stage(self, name: str, place: Place) -> None:
        """Bring the stage ``name`` up to date on a worker; raise a ``StageError`` if it fails."""
        self._run("stage", name, {"name": name}, place)

    def run_experiment(self, overrides: list[str]) -> None:
        """Run an experiment on a worker; raise a ``StageError`` if it fails."""
        self._run("experiment", str(overrides), {"overrides": overrides}, "gpu")

    def _run(self, flow: str, title: str, parameters: dict[str, Any], place: Place) -> None:
        queue = "gpu" if place == "gpu" and self._has_gpu() else "cpu"
        parameters |= {"origin": self.origin.model_dump()}
        run = self._unfinished(flow, title, parameters)  # submitted by a run that was killed, or runs elsewhere
        if run is None:
            submit = partial(run_deployment, self._deployments[flow], timeout=0)
            run = cast(FlowRun, submit(parameters=parameters, flow_run_name=title, work_queue_name=queue))
        state = _awaited(run.id, lambda: f"{title}: waits for a worker; `make worker POOL={self.name}` starts one")
        if not state.is_completed():
            raise StageError(f"{title}: {state.name} on a worker of {self.name}: {state.message or 'see its own log'}")

    def _has_gpu(self) -> bool:
        """Tell whether workers with a GPU serve the pool; the answer is cached for ``_GPU_SECONDS``."""
        asked, found = self._gpu
        if time.monotonic() > asked + _GPU_SECONDS:
            found = is_served(self.name, "gpu")
            self._gpu = (time.monotonic(), found)
        return found

    def _unfinished(self, flow: str, title: str, parameters: dict[str, Any]) -> FlowRun | None:
        """Return an unfinished flow run with the same title and parameters, if there is one."""
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[self._deployments[flow]])),
                flow_run_filter=FlowRunFilter(
                    name=FlowRunFilterName(any_=[title]),
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(_UNFINISHED))),
                ),
            )
        return next((run for run in found if run.parameters == parameters), None)


def _awaited(run_id: UUID, unserved: Callable[[], str]) -> Any:
    """Wait for a flow run and return its final state; an exception here cancels it."""
    began, said = time.monotonic(), False
    try:
        while True:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(run_id).state
            if state and state.is_final():
                return state
            if state and state.is_scheduled() and not said and time.monotonic() > began + _PATIENCE_SECONDS:
                log(unserved())
                said = True
            if started.stopped:
                raise StageError("stopped")
            asked = time.monotonic()
            pause = min(max(_POLL_SECONDS, _POLL_SHARE * (asked - began)), _SELDOM_SECONDS)
            while time.monotonic() < asked + pause and not started.stopped:
                time.sleep(_POLL_SECONDS / 2)
    except BaseException:
        with suppress(Exception), get_client(sync_client=True) as client:  # the server may be down
            client.set_flow_run_state(run_id, Cancelling())
        raise


def require_pool(name: str) -> None:
    """Raise a ``UserError`` if Prefect's server does not answer or has no pool ``name``."""
    try:
        with get_client(sync_client=True) as client:
            pools = [pool.name for pool in client.read_work_pools()]
    except httpx.HTTPError as error:
        raise UserError(f"PREFECT_API_URL: no Prefect server answers ({error}); `make ui` starts one") from None
    if name not in pools:
        have = ", ".join(pools) or "none yet"
        raise UserError(f"pool: given {name!r}, allowed: {have}; `make worker POOL={name}` creates it")


def require_remote(root: Path) -> None:
    """Raise a ``UserError`` if DVC has no default remote, which transfers the results."""
    from dvc.config import Config

    if not Config(str(root / ".dvc"))["core"].get("remote"):
        raise UserError(f"{root}: no DVC remote for the transfer of results; `make remote URL=…` sets one")


def is_served(pool: str, queue: str) -> bool:
    """Tell whether a worker has recently polled ``queue``."""

    async def read() -> bool:
        async with get_client() as client:
            with suppress(ObjectNotFound):
                found = await client.read_work_queue_by_name(queue, work_pool_name=pool)
                return (await client.read_work_queue_status(found.id)).healthy
        return False

    return asyncio.run(read())


def crash_lost_runs() -> None:
    """Create the automation from Prefect's documentation that marks flow runs without a heartbeat as crashed."""
    heartbeat, ended = "prefect.flow-run.heartbeat", ("Completed", "Failed", "Cancelled", "Crashed")
    trigger = EventTrigger(
        after={heartbeat},
        expect={heartbeat, *(f"prefect.flow-run.{state}" for state in ended)},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=3 * HEARTBEAT_SECONDS),
    )
    action = ChangeFlowRunState(
        state=StateType.CRASHED, name=None, message="its worker is lost: no heartbeat", force=False
    )
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(LOST):
            client.create_automation(AutomationCore(name=LOST, trigger=trigger, actions=[action]))
