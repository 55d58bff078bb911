"""MLflow: one run per stage execution, under one parent run per repro.

Tracking never costs a stage its work: whatever fails here is one warning line. ``FLOWTUNE_TRACKING=off`` turns it off.
Everything stays in ``<root>/.flowtune`` (``mlflow.db``, ``mlartifacts/``), and nothing is sent anywhere.
"""

import fcntl
import hashlib
import logging
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import processes, provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

EXPERIMENT = "flowtune"
FLUSH_SECONDS = 5.0

_MAX_KEY, _MAX_PARAM, _MAX_TAG = 250, 6000, 5000  # MLflow's limits; a tag's is the column of its oldest schema
_PARAMS_PER_BATCH, _METRICS_PER_BATCH = 100, 1000
_MAX_BUFFERED = 100_000


def project_root() -> Path:
    """The folder whose ``.flowtune`` holds local state: ``FLOWTUNE_ROOT``, or the repository.

    A queued DVC experiment runs in a copy of the repository below ``.dvc/tmp/exps``, which is thrown away: its runs
    belong to the repository itself.
    """
    root = Path(os.environ.get("FLOWTUNE_ROOT") or Path(__file__).parent.parent).resolve()
    for folder in root.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root


def store_uri(root: Path) -> str:
    """Address of the MLflow database of ``root``."""
    return f"sqlite:///{root / '.flowtune' / 'mlflow.db'}"


def artifact_uri(root: Path) -> str:
    """Address of the MLflow artifacts of ``root``."""
    return (root / ".flowtune" / "mlartifacts").as_uri()


class Run:
    """A stage's record. This one keeps nothing: it stands in where tracking is off or does not work."""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics; cheap enough for every training step. Non-finite values are left out, and tagged."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, in ``folder`` of the run's artifacts."""

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""

    def table(self, path: Path, name: str) -> None:
        """Keep a CSV file as a table that the MLflow UI shows, and compares between runs."""

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""


class _MlflowRun(Run):
    def __init__(self, client: "MlflowClient", root: Path, run_id: str, parent_id: str) -> None:
        self._client, self._root, self._id, self._parent_id = client, root, run_id, parent_id
        self._buffer: list[Metric] = []
        self._interval = FLUSH_SECONDS
        self._flushed = time.monotonic()
        self._warned = False
        self._nonfinite = False

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for name, value in metrics.items():
            if math.isfinite(value):
                self._buffer.append(Metric(_key(name), float(value), now, step or 0))
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
        import pandas as pd

        self._attempt(lambda: self._client.log_table(self._id, pd.read_csv(path), f"{name}.json"))

    def close(self, status: str) -> None:
        self._flush()

        def end() -> None:
            self._client.set_terminated(self._id, status)
            with _locked(self._root):
                _refresh_parent(self._client, self._parent_id)

        self._attempt(end)

    def _flush(self) -> None:
        def send() -> None:
            while self._buffer:
                self._client.log_batch(self._id, metrics=self._buffer[:_METRICS_PER_BATCH])
                del self._buffer[:_METRICS_PER_BATCH]

        # A locked database answers only after seconds: ask it less and less often, and keep the metrics meanwhile.
        self._interval = FLUSH_SECONDS if self._attempt(send) else 2 * self._interval
        del self._buffer[:-_MAX_BUFFERED]
        self._flushed = time.monotonic()

    def _attempt(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception as error:
            if not self._warned:
                _warn(error)
            self._warned = True
            return False
        return True


@contextmanager
def stage_run(
    stage: str, *, params: Mapping[str, object], tags: Mapping[str, str], root: Path | None = None
) -> Iterator[Run]:
    """Record the execution of ``stage`` (its name in dvc.yaml), with parameters nested as deep as they like.

    An exception ends the run as FAILED, SIGINT and SIGTERM end it as KILLED; all of them propagate. A run whose process
    was killed outright is marked KILLED by the next one to start.
    """
    run = _open(stage, params, tags, root or project_root())
    with _sigterm_raises():
        try:
            yield run
        except BaseException as error:
            if not (isinstance(error, SystemExit) and not error.code):
                run.tag("error", f"{type(error).__name__}: {error}")
            run.close(_status(error))
            raise
        run.close("FINISHED")


def _status(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | _Terminated):
        return "KILLED"
    return "FINISHED" if isinstance(error, SystemExit) and not error.code else "FAILED"


class _Terminated(SystemExit):
    """SIGTERM, as an exception that unwinds the stage."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    unclaimed = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not unclaimed or threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(signum: int, _: object) -> None:
        raise _Terminated(128 + signum)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _open(stage: str, params: Mapping[str, object], tags: Mapping[str, str], root: Path) -> Run:
    if os.environ.get("FLOWTUNE_TRACKING") == "off":
        return Run()
    try:
        return _start(stage, params, tags, root)
    except Exception as error:
        _warn(error)
        return Run()


def _start(stage: str, params: Mapping[str, object], tags: Mapping[str, str], root: Path) -> Run:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    from mlflow.entities import Param

    flat = _flatten(params)
    with _locked(root):
        client, experiment_id = _connect(root)
        _mark_killed(client, experiment_id)
        parent_id = _parent(client, experiment_id)
        own_tags = {"mlflow.parentRunId": parent_id, **_describe(stage, flat, root), **tags}
        cut_tags = {_key(key): _shorten(value, _MAX_TAG) for key, value in own_tags.items()}
        run_id = client.create_run(experiment_id, tags=cut_tags, run_name=stage).info.run_id
        client.update_run(parent_id, status="RUNNING")
    entries = [Param(_key(key), _shorten(value, _MAX_PARAM)) for key, value in flat.items()]
    for first in range(0, len(entries), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=entries[first : first + _PARAMS_PER_BATCH])
    return _MlflowRun(client, root, run_id, parent_id)


def create_store(root: Path) -> None:
    """Create the MLflow database of ``root`` where it is absent."""
    with _locked(root):
        if not (root / ".flowtune" / "mlflow.db").exists():
            _connect(root)


def _connect(root: Path) -> tuple["MlflowClient", str]:
    """The client and the experiment's id. Under the lock: two processes creating the database break its migration."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=store_uri(root))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment:
        return client, experiment.experiment_id
    return client, client.create_experiment(EXPERIMENT, artifact_location=artifact_uri(root))


def _parent(client: "MlflowClient", experiment_id: str) -> str:
    key = _key(os.environ.get("FLOWTUNE_RUN") or _repro_key())
    found = client.search_runs([experiment_id], f"tags.`flowtune.repro` = '{key}'", max_results=1)
    if found:
        return found[0].info.run_id
    run_name = f"repro {time.strftime('%Y-%m-%d %H:%M:%S')}"
    return client.create_run(experiment_id, tags={"flowtune.repro": key}, run_name=run_name).info.run_id


def _repro_key() -> str:
    """What all stages of one repro have in common: the ``dvc`` that runs them."""
    return processes.identity(processes.ancestor("dvc") or os.getpid())


def _mark_killed(client: "MlflowClient", experiment_id: str) -> None:
    """End the runs whose process is gone: SIGKILL left them no time to say so."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        if processes.is_gone(run.data.tags.get("flowtune.process", "")):
            client.set_terminated(run.info.run_id, "KILLED")
            _refresh_parent(client, run.data.tags["mlflow.parentRunId"])


def _refresh_parent(client: "MlflowClient", parent_id: str) -> None:
    """Give a parent the worst status among its stages; of equal stages (a retry), the last one counts."""
    experiment_id = client.get_run(parent_id).info.experiment_id
    children = client.search_runs(
        [experiment_id], f"tags.`mlflow.parentRunId` = '{parent_id}'", order_by=["attributes.start_time ASC"]
    )
    last = {(run.info.run_name, run.data.tags.get("hash.params")): run.info.status for run in children}
    status = next((status for status in ("RUNNING", "FAILED", "KILLED") if status in last.values()), "FINISHED")
    if status == "RUNNING":
        client.update_run(parent_id, status)
    else:
        client.set_terminated(parent_id, status)


def _describe(stage: str, params: Mapping[str, str], root: Path) -> dict[str, str]:
    return {
        "stage": stage,
        "git.commit": provenance.git_commit(root),
        "git.dirty": str(provenance.git_dirty(root)).lower(),
        "hash.params": hashlib.sha256(repr(sorted(params.items())).encode()).hexdigest(),
        "hardware": provenance.hardware(),
        "flowtune.process": processes.identity(os.getpid()),
    }


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    folder = root / ".flowtune"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mlflow.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _key(name: str) -> str:
    return re.sub(r"[^\w./: -]", "_", name, flags=re.ASCII)[:_MAX_KEY]


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _warn(error: Exception) -> None:
    reason = " ".join(str(error).split())[:200]
    print(f"warning: MLflow does not record this stage: {type(error).__name__}: {reason}", file=sys.stderr)
