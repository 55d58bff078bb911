"""Find or create MLflow's experiment, its runs and their parents; restore those that were deleted in the UI."""

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.queue import processes_in_queue
from pipeline.tracking.run import PROCESS, Start
from pipeline.tracking.store import artifact_uri, experiment_name, is_remote, store_uri, tracking_uri
from pipeline.utils import processes
from pipeline.utils.platform import lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as FoundRun

_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Makes the MLflow UI open on the table of training runs instead of its page for language models."""
_PARENT = "mlflow.parentRunId"
_ORIGIN = ("mlflow.user", "mlflow.source.type", "mlflow.source.git.commit")

_MAX_KEY, _MAX_PARAM, MAX_TAG = 250, 6000, 5000  # MLflow's limits; a tag's is the column of its oldest schema
_PARAMS_PER_BATCH = 100


@dataclass(frozen=True)
class Place:
    """MLflow's client, and the ids of a stage's experiment, run and parent run."""

    client: "MlflowClient"
    experiment: str
    run: str
    parent: str


def enter(root: Path, start: Start) -> Place:
    """Find, restore or create the run of ``start`` and its parent; return its place."""
    with locked(root):
        client, experiment = _connect(root, tracking_uri(root))
        _mark_killed(root, tracking_uri(root), client, experiment)
        parent = _parent(client, experiment, start)
        run = _known(client, experiment, start)
        if run:
            client.set_tag(run, _PARENT, parent)
        else:
            tags = {_PARENT: parent, **start.tags}
            cut_tags = {as_key(name): shorten(value, MAX_TAG) for name, value in tags.items()}
            run = client.create_run(experiment, start.when, cut_tags, start.stage).info.run_id
        client.update_run(parent, status="RUNNING")
    from mlflow.entities import Param

    entries = [Param(as_key(name), shorten(value, _MAX_PARAM)) for name, value in start.params.items()]
    for first in range(0, len(entries), _PARAMS_PER_BATCH):
        client.log_batch(run, params=entries[first : first + _PARAMS_PER_BATCH])
    return Place(client, experiment, run, parent)


def origin(start: Start) -> dict[str, str]:
    """Return the user and the code version of a stage, as MLflow tags."""
    return {name: start.tags[name] for name in _ORIGIN if name in start.tags}


def open_store(root: Path) -> str:
    """Create the MLflow database of ``root`` if absent and end killed runs; return the experiment's id."""
    with locked(root):
        client, experiment = _connect(root, store_uri(root))
        _mark_killed(root, store_uri(root), client, experiment)
    return experiment


def finished_runs(root: Path) -> "Iterator[FoundRun]":
    """Yield all runs of ``root`` with status FINISHED, the latest first."""
    with locked(root):
        client, experiment = _connect(root, tracking_uri(root))
    token = None
    while True:
        page = client.search_runs([experiment], "attributes.status = 'FINISHED'", page_token=token)
        yield from page
        if not (token := page.token):
            return


def refresh_parent(client: "MlflowClient", parent: str, when: int | None = None) -> None:
    """Give a parent run the worst status of its stages; of equal stages (a retry), the last one counts."""
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs(
        [experiment], f"tags.`{_PARENT}` = '{parent}'", order_by=["attributes.start_time ASC"]
    )
    last = {(run.info.run_name, run.data.tags.get("hash.params")): run.info.status for run in children}
    status = next((status for status in ("RUNNING", "FAILED", "KILLED") if status in last.values()), "FINISHED")
    if status == "RUNNING":
        client.update_run(parent, status)
    else:
        client.set_terminated(parent, status, when)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep other processes of this project from creating the same MLflow entities during the body."""
    folder = root / ".flowtune"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mlflow.lock").open("w", encoding="utf-8") as file:
        lock(file, wait=True)
        yield


def as_key(name: str) -> str:
    """Return ``name`` in a form that MLflow accepts for metrics, parameters and tags."""
    return re.sub(r"[^\w./: -]", "_", name, flags=re.ASCII)[:_MAX_KEY]


def shorten(text: str, limit: int) -> str:
    """Cut ``text`` to at most ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _connect(root: Path, uri: str) -> tuple["MlflowClient", str]:
    """Return a client of the store at ``uri`` and the experiment's id; restore a deleted experiment with its runs.

    The caller must hold the lock: two processes that create the database break its migration.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if is_remote(uri):  # minutes of retries would delay the other runs, and the queue is sent later anyway
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient
    from mlflow.entities import LifecycleStage

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(experiment_name())
    if not experiment:
        location = artifact_uri(root) if uri == store_uri(root) else None
        return client, client.create_experiment(experiment_name(), artifact_location=location, tags=_KIND)
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        client.restore_experiment(experiment.experiment_id)
    for name, value in _KIND.items():
        if name not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, name, value)
    return client, experiment.experiment_id


def _known(client: "MlflowClient", experiment: str, start: Start) -> str | None:
    """Return the id of the run that ``start`` began before, whose recorder was killed or which was deleted."""
    same = f"attributes.start_time = {start.when} and tags.`{PROCESS}` = '{start.tags[PROCESS]}'"
    return _restored(client, experiment, f"{same} and attributes.run_name = '{start.stage}'")


def _restored(client: "MlflowClient", experiment: str, which: str) -> str | None:
    """Return the id of the run that matches a filter; restore it if it was deleted in the UI."""
    from mlflow.entities import LifecycleStage, ViewType

    found = client.search_runs([experiment], which, run_view_type=ViewType.ALL, max_results=1)
    if not found:
        return None
    if found[0].info.lifecycle_stage == LifecycleStage.DELETED:
        client.restore_run(found[0].info.run_id)
    return found[0].info.run_id


def _parent(client: "MlflowClient", experiment: str, start: Start) -> str:
    name = as_key(start.repro)
    if found := _restored(client, experiment, f"tags.`flowtune.repro` = '{name}'"):
        return found
    tags = {"flowtune.repro": name, "mlflow.source.name": "dvc.yaml", **origin(start)}
    run_name = f"repro {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(start.when / 1000))}"
    return client.create_run(experiment, start.when, tags, run_name).info.run_id


def _mark_killed(root: Path, uri: str, client: "MlflowClient", experiment: str) -> None:
    """End runs whose stage was killed, by SIGKILL or a crash of the machine, and that are not in the queue.

    The recorder ends runs in the queue, with the rest of their records.
    """
    from mlflow.exceptions import MlflowException

    queued = processes_in_queue(root)  # read first: a run leaves the queue only after its end in MLflow
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        process = run.data.tags.get(PROCESS, "")
        ours = uri == store_uri(root)  # other stores hold runs of other queues
        if process and process not in queued and (ours or processes.is_gone(process)):
            client.set_terminated(run.info.run_id, "KILLED")
            with suppress(MlflowException):  # the parent was deleted
                refresh_parent(client, run.data.tags.get(_PARENT, ""))
