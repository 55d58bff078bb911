"""Data sets, models and headline metrics in MLflow."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking import queue
from pipeline.tracking import store as tracking
from pipeline.tracking.files import data_sets, model_digests, models
from pipeline.tracking.mlflow_run import begin
from pipeline.tracking.run import start_of
from pipeline.utils.provenance import file_digests
from tests.tracking import test_store
from tests.tracking.test_store import REPOSITORY, client_and_experiment, recorded, runs

root, store = test_store.root, test_store.store

CHECKPOINT = Path("data/checkpoints/lab/pusht/ft_fm-nfe1.safetensors")
FOLDER = Path("reports/starter/episodes")
DATA = Path("data/demonstrations/pusht_starter.npz")
TABLE = Path("reports/starter/table2.csv")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "start_recorder", lambda _: None)
    monkeypatch.chdir(REPOSITORY)
    test_store.PLAYERS.clear()


def train() -> None:
    with tracking.stage_run("finetune", params={}, tags={"mlflow.source.name": "stages/finetune.py"}) as run:
        run.read(data_sets({path: file_digests([path]) for path in (DATA, FOLDER)}, "starter"), [], measured=False)
        run.wrote(models(file_digests([CHECKPOINT])))


def evaluate() -> None:
    with tracking.stage_run("evaluate", params={}, tags={}) as run:
        run.read([], model_digests({CHECKPOINT: file_digests([CHECKPOINT])}), measured=True)
        run.log({"max_score": 0.5, "system/peak_memory_mb": 900.0})


def only_model(store: Path) -> Any:
    client, experiment = client_and_experiment(store)
    (model,) = client.search_logged_models([experiment])
    return model


def test_run_has_data_set_model_source_and_user(store: Path) -> None:
    import mlflow.data
    from mlflow.models import Model

    train()
    run = runs(store)["finetune"]
    data, reports = sorted(run.inputs.dataset_inputs, key=lambda each: each.dataset.schema is None)
    assert reports.dataset.name == "starter/episodes"
    assert (data.dataset.name, data.dataset.digest) == (
        "starter/pusht_starter.npz",
        next(iter(file_digests([DATA]).values()))[:36],
    )
    assert mlflow.data.get_source(data.dataset).load() == str(DATA.absolute())
    assert '"state"' in data.dataset.schema or '\\"state\\"' in data.dataset.schema
    assert run.data.tags["mlflow.source.name"] == "stages/finetune.py" and run.data.tags["mlflow.user"]

    model = only_model(store)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert (model.name, str(model.status), model.source_run_id) == ("lab-pusht-ft_fm-nfe1", "READY", run.info.run_id)
    assert model.tags["file"] == str(CHECKPOINT) and model.tags["mlflow.source.name"] == "stages/finetune.py"
    assert model.tags["mlflow.user"] == run.data.tags["mlflow.user"]
    assert model.params["train_seed"] == "0"
    described = Model.load(f"{model.artifact_location.removeprefix('file://')}/MLmodel")
    assert [each.name for each in described.signature.inputs] == ["observation", "noise"]
    assert described.metadata["file"] == str(CHECKPOINT)


def test_evaluation_metrics_are_attached_to_the_model(store: Path) -> None:
    train()
    evaluate()
    run_id = runs(store)["evaluate"].info.run_id
    model = only_model(store)
    assert {metric.key: metric.value for metric in model.metrics} == {"max_score": 0.5}
    client, _ = client_and_experiment(store)
    assert [given.model_id for given in client.get_run(run_id).inputs.model_inputs] == [model.model_id]


def test_replayed_run_has_no_duplicates(store: Path) -> None:
    start = start_of("finetune", {}, {}, REPOSITORY)
    for _ in range(2):
        run = begin(store, start)
        run.read(list(data_sets({DATA: file_digests([DATA])}, "")), [], measured=False)
        run.wrote(list(models(file_digests([CHECKPOINT]))))
        run.table(TABLE, "table2")
    found = runs(store)["finetune"]
    assert len(found.inputs.dataset_inputs) == len(found.outputs.model_outputs) == 1
    assert only_model(store)


def test_deleted_model_does_not_stop_recording(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train()
    recorded(store)
    client, _ = client_and_experiment(store)
    client.delete_logged_model(only_model(store).model_id)
    evaluate()
    assert runs(store)["evaluate"].data.metrics["max_score"] == 0.5
    assert not capsys.readouterr().err


def test_parent_run_has_headline_metrics_and_table_note(store: Path) -> None:
    with tracking.stage_run("tabulate", params={}, tags={}) as run:
        run.table(TABLE, "table2")
    (parent,) = [run for name, run in runs(store).items() if name.startswith("repro")]
    assert 0 < parent.data.metrics["pusht_b/nfe1 ft_fm max_score"] <= 1
    assert parent.data.tags["mlflow.note.content"].startswith("### Table 2\n")
    assert parent.data.tags["mlflow.user"] and parent.data.tags["mlflow.source.name"] == "dvc.yaml"
