"""Stages recorded by the process above them: the same runs as by themselves, without MLflow in the stage."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.orchestration import repro
from pipeline.tracking import store as tracking
from tests.tracking import test_store
from tests.tracking.test_store import REPOSITORY, runs, start_stage, wait_for

root, empty_database, store = test_store.root, test_store.empty_database, test_store.store

STAGE = """
import sys
from pathlib import Path
from pipeline.tracking.store import stage_run
with stage_run("work", params={"optimizer": {"lr": 1e-4}, "long": "y" * 9000}, tags={"hash.data": "d"}) as run:
    for step in range(1500):
        run.log({"loss": float(step), "rate": float("nan") if step == 7 else 1.0}, step)
    table = Path(sys.argv[1])
    table.write_text("method,score\\nfm,0.5\\n")
    run.artifact(table, "tables")
    run.table(table, "table2")
    table.unlink()
    run.artifact(Path("absent"))
    run.tag("trainable", "7")
    if sys.argv[2] == "fail":
        raise ZeroDivisionError("oh")
print("mlflow" in sys.modules)
"""
OWN_TAGS = {"flowtune.process", "mlflow.parentRunId"}


def work(root: Path, end: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    command = [sys.executable, "-c", STAGE, str(root / "table.csv"), end]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)


def content(root: Path) -> dict[str, Any]:
    """All that MLflow knows of the stage ``work`` but when it ran and in which process."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking.store_uri(root))
    found = runs(root)
    run = found.pop("work")
    (parent,) = found.values()
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    history = [client.get_metric_history(run.info.run_id, name) for name in sorted(run.data.metrics)]
    assert all(run.info.start_time <= one.timestamp <= run.info.end_time for metric in history for one in metric)
    folder = artifacts(run)
    return {
        "status": (run.info.status, parent.info.status),
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key not in OWN_TAGS},
        "repro": parent.data.tags["flowtune.repro"],
        "metrics": [sorted((one.key, one.step, one.value) for one in metric) for metric in history],
        "files": {
            str(path.relative_to(folder)): path.read_text(encoding="utf-8")
            for path in folder.rglob("*")
            if path.is_file()
        },
    }


def copy_of(store: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = store / name
    shutil.copytree(store / ".flowtune", copy / ".flowtune")
    monkeypatch.setenv("FLOWTUNE_ROOT", str(copy))
    return copy


def artifacts(run: Any) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def spool_of(root: Path) -> Path:
    return root / ".flowtune" / "spool"


@pytest.mark.parametrize(("end", "status"), [("well", "FINISHED"), ("fail", "FAILED")])
def test_a_recorded_stage_leaves_what_it_leaves_by_itself(
    end: str, status: str, store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = copy_of(store, "alone", monkeypatch)
    by_itself = work(alone, end, {})
    recorded = copy_of(store, "recorded", monkeypatch)
    with tracking.recorder(recorded) as variables:
        result = work(recorded, end, variables)
    assert content(recorded) == content(alone)
    assert content(recorded)["status"] == (status, status)
    assert len(content(recorded)["files"]) == 2 and len(content(recorded)["metrics"][0]) == 1500
    assert not spool_of(recorded).exists()

    assert result.returncode == by_itself.returncode == (end == "fail")
    assert (by_itself.stdout, result.stdout) == (("True\n", "False\n") if end == "well" else ("", ""))
    assert by_itself.stderr.count("warning: MLflow") == result.stderr.count("warning: MLflow") == 1
    assert "warning" not in capfd.readouterr().err


def test_a_stage_is_seen_while_it_runs_and_killed_ones_end_as_killed(store: Path) -> None:
    with tracking.recorder(store) as variables:
        os.environ.update(variables)  # undone with FLOWTUNE_ROOT
        try:
            stages = {name: start_stage(store, name, 60) for name in ("terminated", "killed")}
        finally:
            os.environ.pop("FLOWTUNE_SPOOL")
        wait_until(lambda: {"terminated", "killed"} <= runs(store).keys())
        found = runs(store)
        assert {run.info.status for run in found.values()} == {"RUNNING"}
        for name, stage in stages.items():
            assert f"/{stage.pid}/" in found[name].data.tags["flowtune.process"]
        wait_for(store / "terminated")
        wait_for(store / "killed")
        stages["terminated"].send_signal(signal.SIGTERM)
        stages["killed"].kill()
        assert stages["terminated"].wait() == 128 + signal.SIGTERM
        stages["killed"].wait()
    assert {run.info.status for run in runs(store).values()} == {"KILLED"}


def test_without_its_recorder_a_stage_records_by_itself(store: Path) -> None:
    with tracking.recorder(store) as variables:
        pass
    assert work(store, "well", variables).stdout == "True\n"
    assert content(store)["status"] == ("FINISHED", "FINISHED")


RECORDER = """
import os, sys, time
from pathlib import Path
from pipeline.tracking import store as tracking
with tracking.recorder(Path(os.environ["FLOWTUNE_ROOT"])) as variables:
    Path(sys.argv[1]).touch()
    time.sleep(600)
"""


@pytest.fixture
def killed_recorder(store: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[bytes]:
    """A recorder in a process of its own, to be killed; stages started now spool to it."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", RECORDER, str(store / "ready")], env=environment)
    wait_for(store / "ready")
    monkeypatch.setenv("FLOWTUNE_SPOOL", str(spool_of(store)))
    return process


def test_a_stage_that_outlives_its_recorder_is_kept_as_one_run(
    store: Path, killed_recorder: subprocess.Popen[bytes]
) -> None:
    go_on = store / "go on"
    waiting = STAGE.replace(
        "table.unlink()", f"import time\n    while not Path({str(go_on)!r}).exists(): time.sleep(0.1)"
    )
    command = [sys.executable, "-c", waiting, str(store / "table.csv"), "well"]
    stage = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    wait_until(lambda: "work" in runs(store) and (artifacts(runs(store)["work"]) / "table2.json").exists())
    killed_recorder.kill()
    killed_recorder.wait()
    go_on.touch()
    assert stage.wait() == 0

    found = content(store)  # of one run: none was begun anew
    assert found["status"] == ("FINISHED", "FINISHED") and found["tags"]["trainable"] == "7"
    assert found["files"]["table2.json"].count("fm") == 1  # the table was kept before, and again
    assert len(found["metrics"][0]) == 1500
    assert not spool_of(store).exists()


def test_an_interrupted_repro_keeps_all_that_came(store: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tracking.recorder(store) as variables:
        assert work(store, "well", variables).stdout == "False\n"
        raise KeyboardInterrupt
    assert content(store)["status"] == ("FINISHED", "FINISHED")


def test_what_a_killed_repro_left_is_kept_by_the_next(store: Path, killed_recorder: subprocess.Popen[bytes]) -> None:
    os.kill(killed_recorder.pid, signal.SIGSTOP)  # reads no more
    assert work(store, "well", {}).stdout == "False\n"
    stage = start_stage(store, "killed", 60)
    wait_for(store / "killed")
    stage.kill()
    stage.wait()
    killed_recorder.kill()
    killed_recorder.wait()
    assert len(list(spool_of(store).iterdir())) == 2

    with tracking.recorder(store):
        pass
    assert {name: runs(store)[name].info.status for name in ("work", "killed")} == {
        "work": "FINISHED",
        "killed": "KILLED",
    }
    assert not spool_of(store).exists()


def test_a_second_recorder_leaves_the_place_to_the_first(store: Path) -> None:
    with tracking.recorder(store) as first, tracking.recorder(store) as second:
        assert first and not second


def test_nothing_is_recorded_where_tracking_is_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWTUNE_TRACKING", "off")
    with tracking.recorder(root) as variables:
        assert not variables
    assert not list(root.iterdir())


def test_a_broken_spool_costs_no_work(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.recorder(store) as variables:
        broken = spool_of(store) / "1-1"
        broken.mkdir()
        (broken / "start.json").write_text("{", encoding="utf-8")
        assert work(store, "well", variables).returncode == 0
    assert content(store)["status"] == ("FINISHED", "FINISHED")
    assert capsys.readouterr().err.count("warning: MLflow") == 1


def test_a_repro_records_what_it_runs(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store / "work.py").write_text(STAGE, encoding="utf-8")
    monkeypatch.setattr(repro, "ROOT", store)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.delenv("FLOWTUNE_RUN")
    assert repro._run(["work", str(store / "table.csv"), "well"], store) == 0
    assert repro._run(["work", str(store / "table.csv"), "fail"], store) == 1

    found = runs(store)
    assert len(found) == 2  # both runs of the stage have one name
    assert {run.info.status for name, run in found.items() if name.startswith("repro")} == {"FAILED"}
