"""Recording of stages by a separate process: live, robust to kills, and without effect on the stages."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from pipeline.tracking import queue, recorder
from pipeline.tracking import store as tracking
from pipeline.tracking.experiment import open_store
from pipeline.tracking.mlflow_run import begin
from pipeline.tracking.run import start_of
from tests.project import wait_for
from tests.tracking import test_store
from tests.tracking.test_store import REPOSITORY

root, store = test_store.root, test_store.store

STAGE = """
import sys, time
from pathlib import Path
from pipeline.tracking.store import stage_run
with stage_run("work", params={"optimizer": {"lr": 1e-4}, "long": "y" * 9000}, tags={"hash.data": "d"}) as run:
    for step in range(1500):
        run.log({"loss": float(step), "rate": float("nan") if step == 7 else 1.0}, step)
    table = Path(sys.argv[1]) / "table.csv"
    table.write_text("method,score\\nfm,0.5\\n")
    run.artifact(table, "tables")
    run.table(table, "table2")
    table.unlink()
    run.tag("trainable", "7")
    while sys.argv[2] == "wait" and not Path(sys.argv[1], "go on").exists():
        time.sleep(0.05)
print("mlflow" in sys.modules)
"""
HISTORY = [("loss", step, float(step)) for step in range(1500)]
wait_until = partial(wait_for, what="the stage, the queue or the recorder", seconds=120, pause=0.1)


def start(root: Path, end: str) -> subprocess.Popen[str]:
    """Start a stage in its own session."""
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, str(root), end],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


def work(root: Path) -> tuple[int, str, str]:
    """Run a stage; return its exit code and output once all processes with its pipes have ended."""
    stage = start(root, "well")
    return (stage.wait(), *stage.communicate())


def runs(root: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking.store_uri(root))
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return {run.info.run_name: run for run in found}


def content(root: Path) -> dict[str, Any]:
    """Return MLflow's data of the single stage ``work``, once it is recorded."""
    from mlflow import MlflowClient

    assert queue.drain(root, 120)
    client = MlflowClient(tracking_uri=tracking.store_uri(root))
    found = runs(root)
    run = found.pop("work")
    (parent,) = found.values()
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return {
        "status": (run.info.status, parent.info.status),
        "params": run.data.params,
        "tags": run.data.tags,
        "history": sorted((m.key, m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")),
        "tables": {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("*table*.*")},
    }


def recorder_of(root: Path) -> int:
    """Return the process id of the running recorder."""

    def found() -> list[int]:
        commands = {path: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()}
        words = b"tracking.recorder"
        return [
            int(path.parent.name) for path, text in commands.items() if words in text and str(root).encode() in text
        ]

    wait_until(lambda: len(found()) == 1)
    return found()[0]


def test_stage_is_recorded_without_importing_mlflow(store: Path) -> None:
    code, out, err = work(store)
    assert (code, out) == (0, "False\n")
    assert "warning" not in err
    found = content(store)
    assert found["status"] == ("FINISHED", "FINISHED")
    assert found["params"]["optimizer.lr"] == "0.0001" and len(found["params"]["long"]) == 6000
    assert (found["tags"]["trainable"], found["tags"]["hash.data"]) == ("7", "d")
    assert found["tags"]["nonfinite_metric"] == "rate = nan at step 7"
    assert found["history"] == HISTORY
    assert set(found["tables"]) == {"table.csv", "table2.json"}


def test_running_stage_is_visible_and_a_killed_group_ends_as_killed(store: Path) -> None:
    stage = start(store, "wait")
    wait_until(lambda: "work" in runs(store))
    assert {run.info.status for run in runs(store).values()} == {"RUNNING"}
    assert f"/{stage.pid}/" in runs(store)["work"].data.tags["flowtune.process"]
    os.killpg(stage.pid, signal.SIGKILL)
    stage.communicate()  # the recorder goes on, and has none of its pipes
    assert content(store)["status"] == ("KILLED", "KILLED")


@pytest.mark.usefixtures("by_hand")
def test_run_from_before_a_reboot_ends_as_killed(store: Path) -> None:
    start = start_of("work", {}, {"flowtune.process": "a-container/before-the-reboot/1/2"}, store)
    left = queue.append(store, start)
    player = recorder.Player(store, partial(begin, store))
    player.play()
    assert runs(store)["work"].info.status == "RUNNING"
    del left  # releases its lock, as the end of its process does
    player.play()
    assert {run.info.status for run in runs(store).values()} == {"KILLED"}
    assert not queue.entries(store)


@pytest.mark.usefixtures("by_hand")
def test_open_store_ends_only_runs_lost_from_the_queue(store: Path) -> None:
    started = [queue.append(store, start_of(name, {}, {"flowtune.process": name}, store)) for name in ("lost", "alive")]
    recorder.Player(store, partial(begin, store)).play()
    shutil.rmtree(queue.entries(store)[0])
    open_store(store)
    assert {name: run.info.status for name, run in runs(store).items() if name in ("lost", "alive")} == {
        "lost": "KILLED",
        "alive": "RUNNING",
    }
    del started


def test_terminated_stage_ends_as_killed(store: Path) -> None:
    stage = start(store, "wait")
    wait_until(lambda: bool(queue.entries(store)))
    wait_until(lambda: b"trainable" in (queue.entries(store)[0] / "lines").read_bytes())
    stage.terminate()
    stage.communicate()
    assert stage.returncode == 128 + signal.SIGTERM
    assert content(store)["status"] == ("KILLED", "KILLED")


def test_simultaneous_stages_share_database_parent_and_recorder(root: Path) -> None:
    stages = [start(root, "wait") for _ in range(2)]
    wait_until(lambda: len(queue.entries(root)) == 2)
    assert recorder_of(root)
    (root / "go on").touch()
    assert [(stage.communicate(), stage.returncode)[1] for stage in stages] == [0, 0]
    assert queue.drain(root, 120)
    found = runs(root)
    assert len(found) == 2 and {run.info.status for run in found.values()} == {
        "FINISHED"
    }  # both stages have the same name


def test_stage_that_outlives_its_recorder_stays_one_run(store: Path) -> None:
    stage = start(store, "wait")
    wait_until(lambda: "work" in runs(store) and "trainable" in runs(store)["work"].data.tags)
    os.kill(recorder_of(store), signal.SIGKILL)
    (store / "go on").touch()
    stage.communicate()
    assert stage.returncode == 0
    found = content(store)  # requires a single run
    assert found["status"] == ("FINISHED", "FINISHED") and found["history"] == HISTORY
    assert found["tables"]["table2.json"].count("fm") == 1  # recorded twice, kept once


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no recorder process, and let a recorder in this process exit soon."""
    monkeypatch.setattr(queue, "start_recorder", lambda _: None)
    monkeypatch.setattr(recorder, "IDLE_SECONDS", 0.5)


@pytest.mark.usefixtures("by_hand")
def test_idle_recorder_exits_unless_a_new_stage_arrived(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["first", "second"]

    def begin_next() -> None:
        if names:
            with tracking.stage_run(names.pop(0), params={}, tags={}):
                pass

    @contextmanager
    def held(lock: IO[str]) -> Iterator[None]:
        with lock:
            yield
            begin_next()  # after all earlier stages are recorded, while the lock is taken

    def claimed(root: Path) -> AbstractContextManager[None] | None:
        lock = queue.claim(root)
        return held(lock) if lock else None

    monkeypatch.setattr(recorder, "claim", claimed)
    begin_next()
    recorder.record(store)
    assert {"first", "second"} < set(runs(store))
    assert not queue.entries(store)


@pytest.mark.usefixtures("by_hand")
def test_only_one_recorder_runs_at_a_time(store: Path) -> None:
    with tracking.stage_run("work", params={}, tags={}):
        pass
    lock = queue.claim(store)
    assert lock
    with lock:
        recorder.record(store)
        assert len(queue.entries(store)) == 1
    recorder.record(store)
    assert not queue.entries(store)


@pytest.mark.usefixtures("by_hand")
def test_broken_queue_entry_does_not_affect_other_runs(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = queue.queue_of(store) / "1-1"
    broken.mkdir(parents=True)
    (broken / "start.json").write_text("{", encoding="utf-8")
    with tracking.stage_run("work", params={}, tags={}):
        pass
    recorder.record(store)
    assert runs(store)["work"].info.status == "FINISHED"
    assert capsys.readouterr().err.count("warning: MLflow") == 1


def test_broken_database_does_not_affect_the_stage_and_warns_once(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (root / ".flowtune").mkdir()
    (root / ".flowtune" / "mlflow.db").write_text("this is no database" * 100, encoding="utf-8")
    code, out, err = work(root)
    assert (code, out) == (0, "False\n")
    assert queue.drain(root, 120)
    assert (err + capfd.readouterr().err).count("warning: MLflow does not record work") == 1


@pytest.fixture
def address() -> str:
    """Return an address at which no server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def served(address: str, folder: Path) -> Iterator[None]:
    """Run an MLflow server at ``address``."""
    folder.mkdir()
    port = address.rpartition(":")[2]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--default-artifact-root", f"{folder}/files"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_TRACKING_URI": ""}
    with (folder / "log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            assert server.poll() is None, (folder / "log").read_text(encoding="utf-8")
            time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_runs_wait_for_an_unreachable_server(
    root: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "arm team")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    errors = ""
    for _ in range(2):
        code, out, err = work(root)
        assert (code, out) == (0, "False\n")
        assert not queue.drain(root, 8)
        errors += err + capfd.readouterr().err
    assert errors.count(f"warning: MLflow at {address} does not answer; runs wait in {root / '.flowtune'}") == 1
    assert len(queue.entries(root)) == 2 and not (root / ".flowtune" / "mlflow.db").exists()
    with served(address, tmp_path / "server"):
        assert queue.drain(root, 120)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=address)
        experiment = client.get_experiment_by_name("arm team")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], "attributes.run_name = 'work'")
        assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
        assert client.get_metric_history(found[0].info.run_id, "loss")[-1].value == 1499
        assert any(file.path == "table2.json" for file in client.list_artifacts(found[0].info.run_id))
    assert queue.entries(root) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [("runs", "file://{root}/runs"), ("sqlite:///of/us.db", "sqlite:///{root}/of/us.db"), ("http://a:5", "http://a:5")],
)
def test_relative_tracking_uri_is_resolved_in_the_project(
    given: str, expected: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking.tracking_uri(root) == expected.format(root=root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.tracking_uri(root) == tracking.store_uri(root)
