"""Record each stage execution as an MLflow run, under one parent run per repro."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.entities import log_data_sets, log_model, log_models_read
from pipeline.tracking.experiment import MAX_TAG, as_key, enter, locked, refresh_parent, shorten
from pipeline.tracking.files import DataSet, Model
from pipeline.tracking.headline import headline, merged
from pipeline.tracking.run import Run, Start, UnreachableError, Warned, now, warn
from pipeline.tracking.store import require_answer, tracking_uri

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Metric

FLUSH_SECONDS = 5.0
_OF_THE_SYSTEM = "system/"
"""Prefix of metrics that MLflow's UI shows separately."""
_NOTE = "mlflow.note.content"
_GONE = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
"""MLflow's error codes for a write to a deleted run and to a missing run."""
_METRICS_PER_BATCH = 1000
_MAX_BUFFERED = 100_000


def begin(root: Path, start: Start) -> Run:
    """Open the MLflow run of ``start``, new or resumed; return a run that keeps nothing if that fails.

    Raises:
        UnreachableError: a tracking server is set and does not answer.
    """
    try:
        return MlflowRun(root, start)
    except UnreachableError:
        raise
    except Exception as error:
        require_answer(tracking_uri(root), error)
        warn(start.stage, error)
        return Run()


class MlflowRun(Warned):
    """MLflow run of a stage; it also updates its parent run."""

    def __init__(self, root: Path, start: Start) -> None:
        super().__init__(start.stage)
        self._root, self._start = root, start
        self._place = enter(root, start)
        self._measured: str | None = None
        self._buffer: list[Metric] = []
        self._interval = FLUSH_SECONDS
        self._flushed = time.monotonic()
        self._nonfinite = False

    def log(self, metrics: Mapping[str, float], step: int | None = None, when: int | None = None) -> None:
        from mlflow.entities import Metric

        when = when or now()
        for name, value in metrics.items():
            if math.isfinite(value):
                measured = None if name.startswith(_OF_THE_SYSTEM) else self._measured
                self._buffer.append(Metric(as_key(name), float(value), when, step or 0, model_id=measured))
            elif not self._nonfinite:
                self._nonfinite = True
                self.tag("nonfinite_metric", f"{name} = {value} at step {step}")
        if time.monotonic() - self._flushed >= self._interval:
            self._flush()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self._attempt(lambda: self._place.client.log_artifact(self._place.run, str(path), folder))

    def tag(self, key: str, value: str) -> None:
        self._attempt(lambda: self._place.client.set_tag(self._place.run, as_key(key), shorten(value, MAX_TAG)))

    def table(self, path: Path, name: str) -> None:
        def send() -> None:
            import pandas as pd

            table, file = pd.read_csv(path), f"{name}.json"
            kept = self._place.client.list_artifacts(self._place.run)
            if all(other.path != file for other in kept):  # log_table would append to it
                self._place.client.log_table(self._place.run, table, file)
            self._tell_parent(table, name)

        self._attempt(send)

    def read(self, data_sets: Iterable[DataSet], models: Sequence[str], *, measured: bool) -> None:
        def send() -> None:
            log_data_sets(self._place, data_sets)
            known = log_models_read(self._place, models)
            self._measured = known[0] if measured and len(known) == 1 else None

        self._attempt(send)

    def wrote(self, models: Iterable[Model]) -> None:
        for model in models:
            self._attempt(partial(log_model, self._place, model, self._start))

    def close(self, status: str, when: int | None = None) -> None:
        self._flush()

        def end() -> None:
            self._place.client.set_terminated(self._place.run, status, when)
            with locked(self._root):
                refresh_parent(self._place.client, self._place.parent, when)

        self._attempt(end)

    def _tell_parent(self, table: "pd.DataFrame", name: str) -> None:
        """Show a table's headline on the parent run: metrics, and rows in the note."""
        told = headline(name, table)
        if not told:
            return
        client, parent = self._place.client, self._place.parent
        from mlflow.entities import Metric

        metrics = [Metric(as_key(name), value, self._start.when, 0) for name, value in told.metrics.items()]
        for first in range(0, len(metrics), _METRICS_PER_BATCH):
            client.log_batch(parent, metrics=metrics[first : first + _METRICS_PER_BATCH])
        with locked(self._root):
            before = client.get_run(parent).data.tags.get(_NOTE, "")
            client.set_tag(parent, _NOTE, merged(before, told.note, MAX_TAG))

    def _attempt(self, action: Callable[[], object]) -> bool:
        from mlflow.exceptions import MlflowException

        def attempt() -> None:
            try:
                action()
            except MlflowException as error:
                require_answer(tracking_uri(self._root), error)
                if error.error_code not in _GONE:
                    raise
                self._place, self._measured = enter(self._root, self._start), None
                action()

        return super()._attempt(attempt)

    def _flush(self) -> None:
        def send() -> None:
            while self._buffer:
                self._place.client.log_batch(self._place.run, metrics=self._buffer[:_METRICS_PER_BATCH])
                del self._buffer[:_METRICS_PER_BATCH]

        # A locked database answers only after seconds: write less and less often, and buffer the metrics.
        self._interval = FLUSH_SECONDS if self._attempt(send) else 2 * self._interval
        del self._buffer[:-_MAX_BUFFERED]
        self._flushed = time.monotonic()
