"""MLflow runs: hierarchy, status after every end of a stage, and errors that never stop a stage."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking import queue
from pipeline.tracking import store as tracking
from pipeline.tracking.mlflow_run import begin
from pipeline.tracking.recorder import Player
from pipeline.utils import processes
from pipeline.utils.provenance import hash_files
from tests.project import Project

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWTUNE_ROOT", str(tmp_path))
    monkeypatch.setenv("FLOWTUNE_RUN", "test")
    monkeypatch.delenv("FLOWTUNE_TRACKING", raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def _recorded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no recorder process: ``recorded`` records stages in this one."""
    monkeypatch.setattr(queue, "start_recorder", lambda _: None)
    PLAYERS.clear()


PLAYERS: dict[Path, Player] = {}


def recorded(root: Path) -> None:
    """Record the queue's entries in MLflow."""
    PLAYERS.setdefault(root, Player(root, partial(begin, root))).play()


@pytest.fixture
def store(root: Path, database: bytes) -> Path:
    Project(root).put_database(database)
    return root


def runs(root: Path) -> dict[str, Any]:
    """Record the queue's entries; return MLflow's runs by name."""
    recorded(root)
    client, experiment = client_and_experiment(root)
    return {run.info.run_name: run for run in client.search_runs([experiment])}


def client_and_experiment(root: Path) -> tuple[Any, str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking.store_uri(root))
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment
    return client, experiment.experiment_id


def test_stages_share_a_parent_and_record_params_metrics_and_tags(store: Path) -> None:
    with tracking.stage_run(
        "pretrain", params={"optimizer": {"lr": 1e-4}, "long": "y" * 9000}, tags={"hash.data": "d"}
    ) as run:
        for step in range(3):
            run.log({"loss": 1.0 / (step + 1)}, step)
    with tracking.stage_run("finetune", params={}, tags={}):
        pass

    found = runs(store)
    pretrain, finetune = found.pop("pretrain"), found.pop("finetune")
    (parent,) = found.values()
    assert pretrain.data.tags["mlflow.parentRunId"] == finetune.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {run.info.status for run in (pretrain, finetune, parent)} == {"FINISHED"}
    assert pretrain.data.params["optimizer.lr"] == "0.0001"
    assert len(pretrain.data.params["long"]) == 6000
    assert pretrain.data.metrics["loss"] == pytest.approx(1 / 3)
    assert {"git.commit", "stage", "hash.params", "hash.data", "hardware"} <= set(pretrain.data.tags)
    assert pretrain.data.tags["hash.params"] != finetune.data.tags["hash.params"]


def test_all_steps_of_a_long_training_are_recorded(store: Path) -> None:
    with tracking.stage_run("pretrain", params={}, tags={}) as run:
        for step in range(2500):  # more than one batch of MLflow
            run.log({"loss": float(step)}, step)

    run_id = runs(store)["pretrain"].info.run_id
    history = client_and_experiment(store)[0].get_metric_history(run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(step, float(step)) for step in range(2500)]


def test_failed_stage_marks_itself_and_its_parent_as_failed(store: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracking.stage_run("bad", params={}, tags={}) as run:
        run.log({"loss": 1.0})
        raise ZeroDivisionError("oh")
    with tracking.stage_run("good", params={}, tags={}):
        pass

    found = runs(store)
    bad, good = found.pop("bad"), found.pop("good")
    (parent,) = found.values()
    assert (bad.info.status, good.info.status, parent.info.status) == ("FAILED", "FINISHED", "FAILED")
    assert bad.data.tags["error"] == "ZeroDivisionError: oh"
    assert bad.data.metrics == {"loss": 1.0}


def test_successful_retry_clears_the_failure_of_the_parent(store: Path) -> None:
    with pytest.raises(ValueError, match="once"), tracking.stage_run("stage", params={"a": 1}, tags={}):
        raise ValueError("once")
    with tracking.stage_run("stage", params={"a": 1}, tags={}):
        pass

    (parent,) = [run for name, run in runs(store).items() if name.startswith("repro")]
    assert parent.info.status == "FINISHED"


def test_nonfinite_metrics_are_skipped_and_tagged(store: Path) -> None:
    with tracking.stage_run("pretrain", params={}, tags={}) as run:
        run.log({"loss": float("nan"), "rate": 2.0}, 7)

    found = runs(store)["pretrain"]
    assert found.data.metrics == {"rate": 2.0}
    assert found.data.tags["nonfinite_metric"] == "loss = nan at step 7"


def test_artifacts_and_tables_are_stored(root: Path) -> None:
    csv = root / "table2.csv"
    csv.write_text("method,score\nfm,0.5\n", encoding="utf-8")
    with tracking.stage_run("tabulate", params={}, tags={}) as run:
        run.artifact(csv, "tables")
        run.table(csv, "table2")
    recorded(root)

    (folder,) = (root / ".flowtune" / "mlartifacts").glob("*/artifacts")
    assert (folder / "tables" / "table2.csv").read_text(encoding="utf-8") == csv.read_text(encoding="utf-8")
    assert '"fm"' in (folder / "table2.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "has_database"),
    [("feature%2Flogin", False), ("a?b#c", False), ("a?b", True), ("a#b", True), ("%20 a+b & ü 流", True)],
)
def test_store_and_artifacts_are_inside_a_project_of_any_name(
    name: str, has_database: bool, tmp_path: Path, database: bytes
) -> None:
    root = tmp_path / name
    root.mkdir()
    if has_database:
        Project(root).put_database(database)
    (root / "note.txt").write_text("kept", encoding="utf-8")
    with tracking.stage_run("pretrain", params={}, tags={}, root=root) as run:
        run.artifact(root / "note.txt")

    assert runs(root)["pretrain"].info.status == "FINISHED"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    assert {path.name for path in root.iterdir()} == {".flowtune", "note.txt"}
    if not has_database:  # a copied database keeps the artifact folder of its origin
        assert [path.name for path in root.glob(".flowtune/mlartifacts/*/artifacts/*")] == ["note.txt"]


def test_a_deleted_experiment_is_restored(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client, experiment = client_and_experiment(store)
    client.delete_experiment(experiment)
    with tracking.stage_run("first", params={}, tags={}) as run:
        run.log({"loss": 1.0}, 0)
        recorded(store)
        client.delete_experiment(experiment)  # during the recording
        run.tag("late", "yes")
    with tracking.stage_run("second", params={}, tags={}):
        pass

    found = runs(store)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert (found["first"].data.tags["late"], found["first"].data.metrics) == ("yes", {"loss": 1.0})
    assert len(found) == 3  # with their parent
    assert not capsys.readouterr().err


@pytest.mark.parametrize("for_ever", [False, True])
def test_deleted_runs_and_parents_are_recorded_again(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, for_ever: bool
) -> None:
    from click.testing import CliRunner
    from mlflow.cli import gc

    client, experiment = client_and_experiment(store)
    with tracking.stage_run("first", params={"lr": 1}, tags={}) as run:
        run.tag("early", "yes")
        recorded(store)
        for deleted in client.search_runs([experiment]):
            client.delete_run(deleted.info.run_id)
            if for_ever:
                uri = tracking.store_uri(store)
                monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # `gc` sets it
                result = CliRunner().invoke(gc, ["--backend-store-uri", uri, "--tracking-uri", uri])
                assert result.exit_code == 0, result.output
        run.tag("late", "yes")
    parent = next(run for run in runs(store).values() if run.info.run_name != "first")
    client.delete_run(parent.info.run_id)
    with tracking.stage_run("second", params={}, tags={}):
        pass

    found = runs(store)
    assert len(found) == 3
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["first"].data.params == {"lr": "1"}
    assert "late" in found["first"].data.tags
    assert ("early" in found["first"].data.tags) is not for_ever
    assert len({found[name].data.tags["mlflow.parentRunId"] for name in ("first", "second")}) == 1
    assert not capsys.readouterr().err


def test_experiment_is_tagged_for_the_view_of_training_runs(store: Path) -> None:
    client, experiment = client_and_experiment(store)
    assert client.get_experiment(experiment).tags["mlflow.experimentKind"] == "custom_model_development"
    client.delete_experiment_tag(experiment, "mlflow.experimentKind")  # as in an older experiment
    with tracking.stage_run("first", params={}, tags={}):
        pass
    recorded(store)
    assert client.get_experiment(experiment).tags["mlflow.experimentKind"] == "custom_model_development"


def test_missing_artifacts_give_one_warning(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.stage_run("pretrain", params={}, tags={}) as run:
        run.artifact(store / "absent")
        run.artifact(store / "absent")

    assert capsys.readouterr().err.count("warning: MLflow") == 1


def test_tracking_off_does_not_import_mlflow(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.tracking.store import stage_run\n"
        "with stage_run('s', params={}, tags={}) as run:\n"
        "    run.log({'loss': 1.0}); run.artifact(Path('x')); run.tag('a', 'b'); run.table(Path('x'), 'x')\n"
        "sys.exit('mlflow' in sys.modules)"
    )
    environment = {"FLOWTUNE_TRACKING": "off", "FLOWTUNE_ROOT": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", program], env=os.environ | environment, check=True)
    assert not list(tmp_path.iterdir())


def test_file_hash_depends_on_names_and_contents_not_on_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("1", encoding="utf-8")
    second.write_text("2", encoding="utf-8")
    whole = hash_files([first, second])
    assert hash_files([second, first]) == hash_files([tmp_path]) == whole
    second.write_text("3", encoding="utf-8")
    assert hash_files([first, second]) != whole
    with pytest.raises(FileNotFoundError):
        hash_files([tmp_path / "absent"])


def test_ancestor_process_is_found_by_program_name(tmp_path: Path) -> None:
    program = tmp_path / "dvc"
    program.write_text(
        "import os, subprocess, sys\nprint(os.getpid(), flush=True)\n"
        "asks = 'from pipeline.utils import processes; print(processes.ancestor(\"dvc\"))'\n"
        "subprocess.run([sys.executable, '-c', asks])\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    output = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    dvc, found = output.stdout.split()
    assert found == dvc
    assert processes.ancestor("no-such-program") is None


def test_process_is_gone_only_on_its_own_host_after_its_end() -> None:
    child = subprocess.Popen(["sleep", "60"])
    name = processes.identity(child.pid)
    assert not processes.is_gone(name)
    child.kill()
    child.wait()
    assert processes.is_gone(name)
    assert not processes.is_gone("elsewhere" + name)
    assert not processes.is_gone("")
