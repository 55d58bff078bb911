"""Keep one MLflow run per stage execution, under one parent run per repro; stages write theirs to a queue.

Tracking never costs a stage its work: whatever fails here is one warning line. ``FLOWTUNE_TRACKING=off`` turns it off.
Everything stays in ``<root>/.flowtune`` (``mlflow.db``, ``mlartifacts/``) and nothing is sent anywhere, unless
``MLFLOW_TRACKING_URI`` names a server: then runs are recorded there, in the experiment ``MLFLOW_EXPERIMENT_NAME``.
"""

import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking import queue
from pipeline.tracking.run import PROCESS, Run, Start, UnreachableError, Warned, closing, now, start_of, warn
from pipeline.utils import processes
from pipeline.utils.environment import project_root
from pipeline.utils.platform import lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities import Run as FinishedRun

EXPERIMENT = "flowtune"
FLUSH_SECONDS = 5.0

_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Has the MLflow UI open on the table of training runs, and not on its page for language models."""
_PARENT = "mlflow.parentRunId"
_GONE = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
"""MLflow's codes for what is written to a run that was deleted, and to one that is no more."""

_MAX_KEY, _MAX_PARAM, _MAX_TAG = 250, 6000, 5000  # MLflow's limits; a tag's is the column of its oldest schema
_PARAMS_PER_BATCH, _METRICS_PER_BATCH = 100, 1000
_MAX_BUFFERED = 100_000


def tracking_uri(root: Path) -> str:
    """Where runs of ``root`` are recorded: at MLFLOW_TRACKING_URI, a path in it relative to ``root``, or locally."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not given:
        return store_uri(root)
    if "://" not in given:  # a folder
        return (root / given).as_uri()
    head, _, path = given.partition(":///")
    return f"{head}:///{root / path}" if head.startswith("sqlite") else given


def experiment_name() -> str:
    """The experiment that runs are recorded in."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def _is_remote(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def store_uri(root: Path) -> str:
    """Address of the MLflow database of ``root``."""
    # with its driver named: of a plain "sqlite:" MLflow takes the quoted path for a folder's name, and makes that
    return sqlite_url("sqlite+pysqlite", root / ".flowtune" / "mlflow.db")


def sqlite_url(driver: str, file: Path) -> str:
    """Address of an SQLite database, whatever the names of its folders hold."""
    from sqlalchemy import URL

    return URL.create(driver, database=str(file)).render_as_string()


def artifact_uri(root: Path) -> str:
    """Address of the MLflow artifacts of ``root``."""
    return (root / ".flowtune" / "mlartifacts").as_uri()


class _MlflowRun(Warned):
    def __init__(self, root: Path, start: Start) -> None:
        super().__init__(start.stage)
        self._root, self._start = root, start
        self._client, self._id, self._parent_id = _enter(root, start)
        self._buffer: list[Metric] = []
        self._interval = FLUSH_SECONDS
        self._flushed = time.monotonic()
        self._nonfinite = False

    def log(self, metrics: Mapping[str, float], step: int | None = None, when: int | None = None) -> None:
        from mlflow.entities import Metric

        when = when or now()
        for name, value in metrics.items():
            if math.isfinite(value):
                self._buffer.append(Metric(_key(name), float(value), when, step or 0))
            elif not self._nonfinite:
                self._nonfinite = True
                self.tag("nonfinite_metric", f"{name} = {value} at step {step}")
        if time.monotonic() - self._flushed >= self._interval:
            self._flush()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self._attempt(lambda: self._client.log_artifact(self._id, str(path), folder))

    def tag(self, key: str, value: str) -> None:
        self._attempt(lambda: self._client.set_tag(self._id, _key(key), _shorten(value, _MAX_TAG)))

    def table(self, path: Path, name: str) -> None:
        def send() -> None:
            import pandas as pd

            file = f"{name}.json"
            if all(kept.path != file for kept in self._client.list_artifacts(self._id)):  # it would grow otherwise
                self._client.log_table(self._id, pd.read_csv(path), file)

        self._attempt(send)

    def close(self, status: str, when: int | None = None) -> None:
        self._flush()

        def end() -> None:
            self._client.set_terminated(self._id, status, when)
            with _locked(self._root):
                _refresh_parent(self._client, self._parent_id, when)

        self._attempt(end)

    def _attempt(self, action: Callable[[], object]) -> bool:
        from mlflow.exceptions import MlflowException

        def attempt() -> None:
            try:
                action()
            except MlflowException as error:
                _require_answer(tracking_uri(self._root), error)
                if error.error_code not in _GONE:
                    raise
                self._client, self._id, self._parent_id = _enter(self._root, self._start)
                action()

        return super()._attempt(attempt)

    def _flush(self) -> None:
        def send() -> None:
            while self._buffer:
                self._client.log_batch(self._id, metrics=self._buffer[:_METRICS_PER_BATCH])
                del self._buffer[:_METRICS_PER_BATCH]

        # A locked database answers only after seconds: ask it less and less often, and keep the metrics meanwhile.
        self._interval = FLUSH_SECONDS if self._attempt(send) else 2 * self._interval
        del self._buffer[:-_MAX_BUFFERED]
        self._flushed = time.monotonic()


@contextmanager
def stage_run(
    stage: str, *, params: Mapping[str, object], tags: Mapping[str, str], root: Path | None = None
) -> Iterator[Run]:
    """Record the execution of ``stage`` (its name in dvc.yaml), with parameters nested as deep as they like.

    An exception ends the run as FAILED, SIGINT and SIGTERM end it as KILLED; all of them propagate. A run whose process
    was killed outright is marked KILLED by the recorder, which talks to MLflow: this process imports none of it.
    """
    with closing(_open(stage, params, tags, root or project_root())) as run:
        yield run


def drain() -> None:
    """Wait until the recorder has recorded what the stages of this project have done, for seconds at most."""
    if not _is_off():
        queue.drain(project_root())


def _is_off() -> bool:
    return os.environ.get("FLOWTUNE_TRACKING") == "off"


def _open(stage: str, params: Mapping[str, object], tags: Mapping[str, str], root: Path) -> Run:
    if _is_off():
        return Run()
    try:
        return queue.append(root, start_of(stage, params, tags, root))
    except Exception as error:
        warn(stage, error)
        return Run()


def _require_answer(uri: str, error: Exception) -> None:
    """Raise an ``UnreachableError`` where ``error`` says that the server at ``uri`` did not answer."""
    if _is_remote(uri) and "API request to" in str(error):  # MLflow's words where no HTTP answer came, or one of 5xx
        raise UnreachableError(f"MLflow at {uri} does not answer") from error


def begin(root: Path, start: Start) -> Run:
    """Open the run of MLflow that ``start`` begins, or began before; one that keeps nothing if that fails.

    Raises:
        UnreachableError: a server was named, and does not answer.
    """
    try:
        return _MlflowRun(root, start)
    except UnreachableError:
        raise
    except Exception as error:
        _require_answer(tracking_uri(root), error)
        warn(start.stage, error)
        return Run()


def _enter(root: Path, start: Start) -> tuple["MlflowClient", str, str]:
    """The client, the run that ``start`` begins and its parent, made where they are not; deleted ones are restored."""
    with _locked(root):
        client, experiment_id = _connect(root)
        _mark_killed(client, experiment_id)
        parent_id = _parent(client, experiment_id, start)
        run_id = _known(client, experiment_id, start)
        if run_id:
            client.set_tag(run_id, _PARENT, parent_id)
        else:
            tags = {_PARENT: parent_id, **start.tags}
            cut_tags = {_key(key): _shorten(value, _MAX_TAG) for key, value in tags.items()}
            run_id = client.create_run(experiment_id, start.when, cut_tags, start.stage).info.run_id
        client.update_run(parent_id, status="RUNNING")
    from mlflow.entities import Param

    entries = [Param(_key(key), _shorten(value, _MAX_PARAM)) for key, value in start.params.items()]
    for first in range(0, len(entries), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=entries[first : first + _PARAMS_PER_BATCH])
    return client, run_id, parent_id


def _known(client: "MlflowClient", experiment_id: str, start: Start) -> str | None:
    """The run that ``start`` began before: its recorder was killed and another plays it again, or it was deleted."""
    same = f"attributes.start_time = {start.when} and tags.`{PROCESS}` = '{start.tags[PROCESS]}'"
    return _restored(client, experiment_id, f"{same} and attributes.run_name = '{start.stage}'")


def _restored(client: "MlflowClient", experiment_id: str, which: str) -> str | None:
    """The run found with a filter; one deleted in the UI is restored."""
    from mlflow.entities import LifecycleStage, ViewType

    found = client.search_runs([experiment_id], which, run_view_type=ViewType.ALL, max_results=1)
    if not found:
        return None
    if found[0].info.lifecycle_stage == LifecycleStage.DELETED:
        client.restore_run(found[0].info.run_id)
    return found[0].info.run_id


def create_store(root: Path) -> None:
    """Create the MLflow database of ``root`` where it is absent."""
    with _locked(root):
        if not (root / ".flowtune" / "mlflow.db").exists():
            _connect(root, store_uri(root))


def finished_runs(root: Path) -> "Iterator[FinishedRun]":
    """All runs of stages that MLflow keeps of ``root`` and that ended well, the latest first."""
    with _locked(root):
        client, experiment_id = _connect(root)
    token = None
    while True:
        page = client.search_runs([experiment_id], "attributes.status = 'FINISHED'", page_token=token)
        yield from page
        if not (token := page.token):
            return


def _connect(root: Path, uri: str = "") -> tuple["MlflowClient", str]:
    """The client and the experiment's id; one that was deleted in the UI is restored, its runs too.

    Under the lock: two processes creating the database break its migration.

    Args:
        uri: of the store; empty: ``tracking_uri``.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = uri or tracking_uri(root)
    if _is_remote(uri):  # what waits is sent later: minutes of retries would only delay the rest
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
    for key, value in _KIND.items():
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return client, experiment.experiment_id


def _parent(client: "MlflowClient", experiment_id: str, start: Start) -> str:
    key = _key(start.repro)
    if found := _restored(client, experiment_id, f"tags.`flowtune.repro` = '{key}'"):
        return found
    run_name = f"repro {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(start.when / 1000))}"
    return client.create_run(experiment_id, start.when, {"flowtune.repro": key}, run_name).info.run_id


def _mark_killed(client: "MlflowClient", experiment_id: str) -> None:
    """End the runs whose process is gone: SIGKILL left them no time to say so."""
    from mlflow.exceptions import MlflowException

    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        if processes.is_gone(run.data.tags.get(PROCESS, "")):
            client.set_terminated(run.info.run_id, "KILLED")
            with suppress(MlflowException):  # the parent was deleted
                _refresh_parent(client, run.data.tags.get(_PARENT, ""))


def _refresh_parent(client: "MlflowClient", parent_id: str, when: int | None = None) -> None:
    """Give a parent the worst status among its stages; of equal stages (a retry), the last one counts."""
    experiment_id = client.get_run(parent_id).info.experiment_id
    children = client.search_runs(
        [experiment_id], f"tags.`{_PARENT}` = '{parent_id}'", order_by=["attributes.start_time ASC"]
    )
    last = {(run.info.run_name, run.data.tags.get("hash.params")): run.info.status for run in children}
    status = next((status for status in ("RUNNING", "FAILED", "KILLED") if status in last.values()), "FINISHED")
    if status == "RUNNING":
        client.update_run(parent_id, status)
    else:
        client.set_terminated(parent_id, status, when)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    folder = root / ".flowtune"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mlflow.lock").open("w", encoding="utf-8") as file:
        lock(file, wait=True)
        yield


def _key(name: str) -> str:
    return re.sub(r"[^\w./: -]", "_", name, flags=re.ASCII)[:_MAX_KEY]


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
