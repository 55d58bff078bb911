"""Locate the MLflow store, and open a stage's run, which writes to a queue.

A tracking error never fails a stage; it is one warning line. ``FLOWTUNE_TRACKING=off`` turns tracking off. Records stay
in ``<root>/.flowtune`` (``mlflow.db``, ``mlartifacts/``) unless ``MLFLOW_TRACKING_URI`` names a server. Then they go to
that server, to the experiment ``MLFLOW_EXPERIMENT_NAME``.
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
    """Return the store of runs of ``root``: MLFLOW_TRACKING_URI, with paths relative to ``root``, or the local one."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not given:
        return store_uri(root)
    if "://" not in given:  # a folder
        return (root / given).as_uri()
    head, _, path = given.partition(":///")
    return f"{head}:///{root / path}" if head.startswith("sqlite") else given


def experiment_name() -> str:
    """Return the name of the MLflow experiment for all runs."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def is_remote(uri: str) -> bool:
    """Tell whether ``uri`` is the address of a server."""
    return uri.startswith(("http://", "https://"))


def store_uri(root: Path) -> str:
    """Return the address of the MLflow database of ``root``."""
    # with a driver: for a plain "sqlite:", MLflow takes the quoted path for a folder's name and creates that folder
    return sqlite_url("sqlite+pysqlite", root / ".flowtune" / "mlflow.db")


def sqlite_url(driver: str, file: Path) -> str:
    """Return the address of an SQLite database; its path may hold any characters."""
    from sqlalchemy import URL

    return URL.create(driver, database=str(file)).render_as_string()


def artifact_uri(root: Path) -> str:
    """Return the address of the MLflow artifacts of ``root``."""
    return (root / ".flowtune" / "mlartifacts").as_uri()


@contextmanager
def stage_run(
    stage: str, *, params: Mapping[str, object], tags: Mapping[str, str], root: Path | None = None
) -> Iterator[Run]:
    """Record the execution of ``stage`` (its name in dvc.yaml); parameters may be nested.

    An exception ends the run as FAILED, SIGINT and SIGTERM end it as KILLED; all of them propagate. After SIGKILL the
    recorder marks the run KILLED. Only the recorder imports MLflow.
    """
    with closing(_open(stage, params, tags, root or project_root())) as run:
        yield run


def drain() -> None:
    """Wait until the recorder has recorded the stages of this project, at most some seconds."""
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
    """Raise an ``UnreachableError`` if ``error`` says that the server at ``uri`` did not answer."""
    if is_remote(uri) and "API request to" in str(error):  # MLflow's message if there was no HTTP answer, or a 5xx
        raise UnreachableError(f"MLflow at {uri} does not answer") from error
