"""Log the data sets and models of a stage as MLflow entities.

A model file is logged by reference: DVC's cache keeps each version, and copies of all checkpoints would be gigabytes.
The logged model names the file, and its ``MLmodel`` file has the signature.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.tracking.experiment import Place, origin, shorten
from pipeline.tracking.files import Arrays, DataSet, Model
from pipeline.tracking.run import Start

if TYPE_CHECKING:
    from mlflow.types import Schema

_DIGEST = "sha256"
_MAX_PARAM = 500
_EXTERNAL = {"mlflow.model.isExternal": "true"}
"""MLflow's tag for a model with files elsewhere, as ``mlflow.create_external_model`` sets it."""


def log_data_sets(place: Place, data_sets: Iterable[DataSet]) -> None:
    """Log data sets as inputs of a stage's run."""
    from mlflow.entities import Dataset, DatasetInput

    inputs = []
    for each in data_sets:
        source, profile = json.dumps({"uri": each.path}), json.dumps({"files": each.files, "bytes": each.size})
        schema = _data_schema(each.arrays) if each.arrays else None
        inputs.append(DatasetInput(Dataset(each.name, each.digest, "local", source, schema, profile)))
    if inputs:
        place.client.log_inputs(place.run, inputs)


def log_models_read(place: Place, digests: Sequence[str]) -> list[str]:
    """Log the models read that MLflow knows, of equal ones the latest, as inputs of the run; return their ids."""
    from mlflow.entities import LoggedModelInput

    if not digests:
        return []
    which = f"tags.{_DIGEST} IN ({', '.join(repr(digest) for digest in digests)})"
    found = place.client.search_logged_models(
        [place.experiment], which, order_by=[{"field_name": "creation_timestamp", "ascending": True}]
    )
    latest = {model.tags[_DIGEST]: model.model_id for model in found}
    if latest:
        place.client.log_inputs(place.run, models=[LoggedModelInput(model_id) for model_id in latest.values()])
    return list(latest.values())


def log_model(place: Place, model: Model, start: Start) -> None:
    """Log a model as an output of a stage's run, unless it is logged already."""
    from mlflow.entities import LoggedModelOutput

    same = f"source_run_id = '{place.run}' AND tags.{_DIGEST} = '{model.digest}' AND name = '{model.name}'"
    if place.client.search_logged_models([place.experiment], same):
        return
    tags = _EXTERNAL | {
        _DIGEST: model.digest,
        "file": model.path,
        "mlflow.source.name": start.tags.get("mlflow.source.name", start.stage),
        **origin(start),
    }
    params = {name: shorten(value, _MAX_PARAM) for name, value in model.params.items()}
    logged = place.client.create_logged_model(place.experiment, model.name, place.run, tags, params, model.kind)
    _describe(place, logged.model_id, model)
    place.client.finalize_logged_model(logged.model_id, "READY")
    place.client.log_outputs(place.run, [LoggedModelOutput(logged.model_id, model.step)])


def _describe(place: Place, model_id: str, model: Model) -> None:
    """Write the ``MLmodel`` file: the signature of a solve, and the path and digest of the weights."""
    from mlflow.models import Model as Description
    from mlflow.models import ModelSignature

    signature = ModelSignature(_schema(model.takes), _schema(model.gives))
    weights: dict[str, Any] = {"file": model.path, _DIGEST: model.digest}
    described = Description(run_id=place.run, signature=signature, metadata=weights, model_id=model_id)
    with TemporaryDirectory() as folder:
        described.save(str(Path(folder, "MLmodel")))
        place.client.log_model_artifacts(model_id, folder)


def _data_schema(arrays: Arrays) -> str:
    """Return the arrays as JSON of a data set's schema in MLflow."""
    return json.dumps({"mlflow_tensorspec": {"features": _schema(arrays).to_json(), "targets": None}})


def _schema(arrays: Arrays) -> "Schema":
    import numpy as np
    from mlflow.types import Schema, TensorSpec

    return Schema([TensorSpec(np.dtype(kind), tuple(shape), name) for name, (kind, shape) in arrays.items()])
