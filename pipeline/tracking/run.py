"""Backend-independent logging interface of a stage: start, records and end of a run."""

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.tracking.files import DataSet, Model, flat
from pipeline.utils import processes, provenance

PROCESS = "flowtune.process"


class Run:
    """Logging interface of a stage. This base class keeps nothing, for when tracking is off or fails.

    ``when`` is in milliseconds since 1970; None means now.
    """

    def log(self, metrics: Mapping[str, float], step: int | None = None, when: int | None = None) -> None:
        """Record metrics; cheap enough for every training step. Non-finite values are not logged, but tagged."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, in ``folder`` of the run's artifacts."""

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""

    def table(self, path: Path, name: str) -> None:
        """Keep a CSV file as a table that the MLflow UI shows and compares between runs."""

    def read(self, data_sets: Iterable[DataSet], models: Sequence[str], *, measured: bool) -> None:
        """Record the data sets and models that the stage reads; models unknown to MLflow are ignored.

        Args:
            models: SHA-256 digests.
            measured: whether the metrics belong to the only model read; MLflow then shows them with the model.
        """

    def wrote(self, models: Iterable[Model]) -> None:
        """Record models that the stage has written."""

    def close(self, status: str, when: int | None = None) -> None:
        """End the run as FINISHED, FAILED or KILLED."""


class UnreachableError(Exception):
    """Raised if the MLflow server does not answer; records wait in the queue until it does."""


class Warned(Run):
    """Run that reports its failures in one warning line and never fails the stage."""

    def __init__(self, stage: str) -> None:
        self._stage, self._warned = stage, False

    def _attempt(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except UnreachableError:
            raise
        except Exception as error:
            if not self._warned:
                warn(self._stage, error)
            self._warned = True
            return False
        return True


@dataclass(frozen=True)
class Start:
    """Start of a run.

    Attributes:
        repro: identifier that all stages of one repro share.
        when: milliseconds since 1970.
        params: flat, names joined by dots.
        tags: include the stage's process, as ``PROCESS``.
    """

    stage: str
    repro: str
    when: int
    params: dict[str, str]
    tags: dict[str, str]


def start_of(stage: str, params: Mapping[str, object], tags: Mapping[str, str], root: Path) -> Start:
    """Return the start of a run of ``stage`` by this process with the code in ``root``."""
    named = flat(params)
    commit = provenance.git_commit(root)
    own = {
        "stage": stage,
        "git.commit": commit,
        **({} if commit == "none" else {"mlflow.source.git.commit": commit}),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": provenance.user(),
        "git.dirty": str(provenance.git_dirty(root)).lower(),
        "hash.params": hashlib.sha256(repr(sorted(named.items())).encode()).hexdigest(),
        "hardware": provenance.hardware(),
        PROCESS: processes.identity(os.getpid()),
    }
    repro = os.environ.get("FLOWTUNE_RUN") or processes.identity(processes.ancestor("dvc") or os.getpid())
    return Start(stage, repro, now(), named, {**own, **tags})


@contextmanager
def closing(run: Run) -> Iterator[Run]:
    """Close ``run`` with the status of the body, except after SIGKILL; exceptions propagate."""
    with _sigterm_raises():
        try:
            yield run
        except BaseException as error:
            if not (isinstance(error, SystemExit) and not error.code):
                run.tag("error", f"{type(error).__name__}: {error}")
            run.close(_status(error))
            raise
        run.close("FINISHED")


def now() -> int:
    """Return the time in milliseconds since 1970."""
    return int(time.time() * 1000)


def warn(stage: str, error: Exception) -> None:
    """Print one warning line that ``stage`` is not recorded."""
    reason = " ".join(str(error).split())[:200]
    print(f"warning: MLflow does not record {stage}: {type(error).__name__}: {reason}", file=sys.stderr)


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
