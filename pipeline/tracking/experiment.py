"""Find or make MLflow's experiment, its runs and their parents; what a person deletes in the UI is restored."""

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
"""Has the MLflow UI open on the table of training runs, and not on its page for language models."""
_PARENT = "mlflow.parentRunId"
_ORIGIN = ("mlflow.user", "mlflow.source.type", "mlflow.source.git.commit")

_MAX_KEY, _MAX_PARAM, MAX_TAG = 250, 6000, 5000  # MLflow's limits; a tag's is the column of its oldest schema
_PARAMS_PER_BATCH = 100


@dataclass(frozen=True)
class Place:
    """Where a stage is recorded: MLflow's client, and the ids of the experiment, of the run and of its parent."""

    client: "MlflowClient"
    experiment: str
    run: str
    parent: str


def enter(root: Path, start: Start) -> Place:
    """The place of the run that ``start`` begins, made where it is not there; what was deleted is restored."""
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
    """Who ran a stage with what code, as tags of MLflow."""
    return {name: start.tags[name] for name in _ORIGIN if name in start.tags}


def open_store(root: Path) -> str:
    """Make the MLflow database of ``root`` where it is absent, and end runs that were killed: the experiment's id."""
    with locked(root):
        client, experiment = _connect(root, store_uri(root))
        _mark_killed(root, store_uri(root), client, experiment)
    return experiment


def finished_runs(root: Path) -> "Iterator[FoundRun]":
    """All runs of stages that MLflow keeps of ``root`` and that ended well, the latest first."""
    with locked(root):
        client, experiment = _connect(root, tracking_uri(root))
    token = None
    while True:
        page = client.search_runs([experiment], "attributes.status = 'FINISHED'", page_token=token)
        yield from page
        if not (token := page.token):
            return


def refresh_parent(client: "MlflowClient", parent: str, when: int | None = None) -> None:
    """Give a parent the worst status among its stages; of equal stages (a retry), the last one counts."""
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
    """Keep other processes of this project from making the same thing in MLflow meanwhile."""
    folder = root / ".flowtune"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mlflow.lock").open("w", encoding="utf-8") as file:
        lock(file, wait=True)
        yield


def as_key(name: str) -> str:
    """``name`` as MLflow takes it for a metric, a parameter or a tag."""
    return re.sub(r"[^\w./: -]", "_", name, flags=re.ASCII)[:_MAX_KEY]


def shorten(text: str, limit: int) -> str:
    """The first characters of ``text``, ``limit`` at most."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _connect(root: Path, uri: str) -> tuple["MlflowClient", str]:
    """The client of the store at ``uri`` and the experiment's id; one that was deleted is restored, its runs too.

    Under the lock: two processes creating the database break its migration.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if is_remote(uri):  # what waits is sent later: minutes of retries would only delay the rest
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
    """The run that ``start`` began before: its recorder was killed and another plays it again, or it was deleted."""
    same = f"attributes.start_time = {start.when} and tags.`{PROCESS}` = '{start.tags[PROCESS]}'"
    return _restored(client, experiment, f"{same} and attributes.run_name = '{start.stage}'")


def _restored(client: "MlflowClient", experiment: str, which: str) -> str | None:
    """The run found with a filter; one deleted in the UI is restored."""
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
    """End the runs whose stage is gone and that the queue has lost: SIGKILL, or a machine's end, left nobody to.

    A run that is in the queue is ended by the recorder, which knows more of it.
    """
    from mlflow.exceptions import MlflowException

    queued = processes_in_queue(root)  # asked first: what ends meanwhile leaves the queue after it has ended in MLflow
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        process = run.data.tags.get(PROCESS, "")
        ours = uri == store_uri(root)  # elsewhere are the runs of others, which their queues know
        if process and process not in queued and (ours or processes.is_gone(process)):
            client.set_terminated(run.info.run_id, "KILLED")
            with suppress(MlflowException):  # the parent was deleted
                refresh_parent(client, run.data.tags.get(_PARENT, ""))
