"""Say where the runs of stages are kept, and open one; stages write theirs to a queue.

Tracking never costs a stage its work: whatever fails here is one warning line. ``FLOWTUNE_TRACKING=off`` turns it off.
Everything stays in ``<root>/.flowtune`` (``mlflow.db``, ``mlartifacts/``) and nothing is sent anywhere, unless
``MLFLOW_TRACKING_URI`` names a server: then runs are recorded there, in the experiment ``MLFLOW_EXPERIMENT_NAME``.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.tracking import queue
from pipeline.tracking.run import Run, UnreachableError, closing, start_of, warn
from pipeline.utils.environment import project_root

EXPERIMENT = "flowtune"


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


def is_remote(uri: str) -> bool:
    """Whether a server keeps what is recorded at ``uri``."""
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


def require_answer(uri: str, error: Exception) -> None:
    """Raise an ``UnreachableError`` where ``error`` says that the server at ``uri`` did not answer."""
    if is_remote(uri) and "API request to" in str(error):  # MLflow's words where no HTTP answer came, or one of 5xx
        raise UnreachableError(f"MLflow at {uri} does not answer") from error
