"""Prefect flows on a small DVC repository: order, failure, cancellation, lock and sweeps."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Running

from pipeline.orchestration import prefect_flows
from pipeline.orchestration.repro import repro_lock
from pipeline.utils import processes
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError
from tests.project import commit_all, wait_for

DVC_YAML = """
stages:
  check: {cmd: echo ok > checked.txt, deps: [params.yaml], outs: [checked.txt]}
  prepare:
    matrix: {scale: ["${scale}"], task: "${tasks}"}
    cmd: test ! -e broken-${item.task} && echo $FLOWTUNE_RUN >> runs.txt && cp checked.txt data-${item.task}.txt
    deps: [checked.txt]
    outs: ["data-${item.task}.txt"]
  tabulate:
    matrix: {scale: ["${scale}"], task: "${tasks}"}
    cmd: cp data-${item.task}.txt table-${item.task}.txt
    deps: ["data-${item.task}.txt"]
    outs: ["table-${item.task}.txt"]
  unrelated: {cmd: echo > unrelated.txt, deps: [checked.txt], outs: [unrelated.txt]}
"""


pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    (tmp_path / "study").mkdir()
    study = "stages: {cell: {cmd: sleep 3600, outs: [cell.txt]}}"  # a separate pipeline
    (tmp_path / "study" / "dvc.yaml").write_text(study, encoding="utf-8")
    (tmp_path / "params.yaml").write_text("scale: starter\ntasks: [one, two]\nrate: 1\n", encoding="utf-8")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FLOWTUNE_ROOT", str(tmp_path))
    monkeypatch.setattr(prefect_flows, "checked_settings", lambda _: None)  # these are not the project's settings
    monkeypatch.setattr(prefect_flows, "run_stage", prefect_flows.run_stage.with_options(retries=0))
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    return tmp_path


def test_broken_dvc_yaml_gives_a_one_line_error(root: Path) -> None:
    (root / "dvc.yaml").write_text("stages: [", encoding="utf-8")
    state = prefect_flows.tables("all", return_state=True)
    assert state.is_failed() and state.message
    assert state.message.startswith(f"{root / 'dvc.yaml'}: ") and "\n" not in state.message


@pytest.mark.usefixtures("root")
def test_unknown_target_gives_an_error() -> None:
    state = prefect_flows.tables("table1", return_state=True)
    assert state.is_failed()
    assert "no stage makes table1; it needs one of tabulate_images, draw_images" in (state.message or "")


def test_failed_stage_stops_only_its_dependents_and_the_next_run_completes(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "broken-one").touch()
    state = prefect_flows.tables("table2", parallel=2, return_state=True)

    assert state.is_failed()
    assert state.message == "failed: prepare@starter-one; not run: tabulate@starter-one"
    assert "prepare@starter-one: exit code" in caplog.text
    assert "Traceback" not in caplog.text and "NoneType" not in caplog.text
    assert (root / "table-two.txt").read_text(encoding="utf-8") == "ok\n"
    assert not (root / "table-one.txt").exists()
    assert not (root / "unrelated.txt").exists()

    (root / "broken-one").unlink()
    assert prefect_flows.tables("table2", return_state=True).is_completed()
    assert (root / "table-one.txt").exists()
    runs = (root / "runs.txt").read_text(encoding="utf-8").split()
    assert len(runs) == len(set(runs)) == 2  # prepare ran once for each task, under one key for each flow run


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("params.yaml: scale: given huge, allowed: lab"), "params.yaml: scale: given huge, allowed: lab"),
        (OSError(30, "Read-only file system"), "[Errno 30] Read-only file system"),
    ],
)
def test_error_before_dvc_starts_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def refuse(_: Path) -> None:
        raise error

    monkeypatch.setattr(prefect_flows, "checked_settings", refuse)
    state = prefect_flows.tables("table2", return_state=True)
    assert (state.is_failed(), state.message) == (True, message)
    assert not (root / "checked.txt").exists()


def test_two_runs_never_overlap(root: Path) -> None:
    other = (
        "import sys, time\nfrom pathlib import Path\nfrom pipeline.orchestration.repro import repro_lock\n"
        "with repro_lock(Path(sys.argv[1])):\n    print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", other, str(root)]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8")
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        state = prefect_flows.tables("table2", return_state=True)
        assert state.is_failed()
        assert f"process {holder.pid} " in (state.message or "")
    finally:
        holder.kill()
        holder.wait()
    with repro_lock(root):  # the lock of a killed process is free
        pass


def test_abandoned_flow_runs_are_cancelled() -> None:
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(prefect_flows.sweep, parameters={"overrides": []}, state=Running())
        prefect_flows._cancel_unfinished()
        state = client.read_flow_run(run.id).state
    assert state and (state.is_cancelled(), state.message) == (True, "make ui was stopped")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [(["a=1,2", "b=3"], [["a=1", "b=3"], ["a=2", "b=3"]]), (["a=[1,2],[3]"], [["a=[1,2]"], ["a=[3]"]])],
)
def test_overrides_are_combined(overrides: list[str], expected: list[list[str]]) -> None:
    assert prefect_flows.combinations(overrides) == expected


@pytest.mark.parametrize("overrides", [[], ["a"], ["a="], ["=1"], ["a=1,"]])
def test_malformed_overrides_are_refused(overrides: list[str]) -> None:
    with pytest.raises(UserError, match="overrides"):
        prefect_flows.combinations(overrides)


def test_a_sweep_runs_an_experiment_for_each_value_and_leaves_the_workspace_alone(root: Path) -> None:
    (root / ".dvc" / "config").write_text("", encoding="utf-8")
    (root / ".gitignore").write_text("*.txt\n.flowtune\n", encoding="utf-8")
    (root / "dvc.yaml").write_text(
        "stages:\n  rate: {cmd: echo ran > rate.txt, params: [rate], outs: [rate.txt]}\n", encoding="utf-8"
    )
    commit_all(root)
    before = (root / "params.yaml").read_text(encoding="utf-8")

    assert prefect_flows.sweep(["rate=2,3"], return_state=True).is_completed()

    assert (root / "params.yaml").read_text(encoding="utf-8") == before
    show = [sys.executable, "-m", "dvc", "exp", "show", "--csv"]
    table = subprocess.run(show, cwd=root, capture_output=True, encoding="utf-8", check=True).stdout
    rates = [row["rate"] for row in csv.DictReader(table.splitlines())]
    assert sorted(rates) == ["1", "1", "2", "3"]  # the workspace, the commit and two experiments


def test_supervised_command_and_its_children_die_with_the_parent() -> None:
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom pipeline.utils import processes\n"
        "child = processes.start(['sh', '-c', 'sleep 61 & echo $!; wait'], cwd=Path('.'), env=os.environ)\n"
        "print(child.stdout.readline(), end='', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8")
    assert parent.stdout is not None
    grandchild = processes.identity(int(parent.stdout.readline()))
    assert not processes.is_gone(grandchild)
    parent.kill()
    parent.wait()
    wait_for(lambda: processes.is_gone(grandchild), "the grandchild to die", seconds=30)
