"""Stages and experiments on workers in separate clones, which share only DVC's remote."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed

from pipeline.orchestration import pool, prefect_flows
from pipeline.orchestration.executor import StageError
from pipeline.orchestration.worker_flows import Origin, as_at
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError
from tests.project import commit_all, wait_for

DVC_YAML = """
stages:
  train:
    matrix: {task: "${tasks}"}
    cmd: >-
      test ! -e ../hook || . ../hook; echo $FLOWTUNE_ROOT > trained-${item.task}.txt;
      while test -e ../wait; do sleep 0.1; done
    deps: [params.yaml]
    plots: ["trained-${item.task}.txt": {cache: false}]
  tabulate:
    cmd: cat trained-one.txt trained-two.txt > table.txt
    deps: [trained-one.txt, trained-two.txt]
    outs: [table.txt]
"""
pytestmark = pytest.mark.usefixtures("prefect_server")


def ran(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository that shares a DVC remote with its clones."""
    root = tmp_path / "head"
    root.mkdir()
    (root / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    (root / "params.yaml").write_text("scale: starter\ntasks: [one, two]\nrate: 1\n", encoding="utf-8")
    (root / ".gitignore").write_text("*.txt\n.flowtune\n", encoding="utf-8")
    ran("git", "init", "-q", cwd=root)
    ran(sys.executable, "-m", "dvc", "init", "-q", cwd=root)
    commit_all(root)
    monkeypatch.setenv("FLOWTUNE_ROOT", str(root))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(prefect_flows, "checked_settings", lambda _: None)  # these are not the project's settings
    share(root)
    return root


def start_tables(head: Path) -> subprocess.Popen[bytes]:
    """Start a head in its own process group; it prints the flow runs that it awaits, and its final state."""
    program = (
        "from pipeline.orchestration import pool as p, prefect_flows as f; f.checked_settings = lambda _: None\n"
        # one call of print for each line, since several threads print
        "awaited, show = p._awaited, lambda run: print(f'{run}\\n', end='', flush=True)\n"
        "p._awaited = lambda run, say: (show(run), awaited(run, say))[1]\n"
        "print(f.tables('all', parallel=2, pool='lab', return_state=True).type.value)"
    )
    own = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "FLOWTUNE_ROOT": str(head)}
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=head, env=os.environ | own, stdout=subprocess.PIPE, start_new_session=True
    )


def awaited_by(run: subprocess.Popen[bytes]) -> set[bytes]:
    """Return the first two flow runs that a head awaits."""
    assert run.stdout
    return {run.stdout.readline() for _ in range(2)}


def clone_of(head: Path, name: str) -> Path:
    clone = head.parent / name
    ran("git", "clone", "-q", str(head), str(clone), cwd=head.parent)
    share(clone)
    return clone


def share(clone: Path) -> None:
    remote = ("remote", "add", "--quiet", "--local", "--default", "shared", str(clone.parent / "remote"))
    ran(sys.executable, "-m", "dvc", *remote, cwd=clone)


class Workers:
    """Worker processes, each in a clone of the head."""

    def __init__(self, head: Path) -> None:
        self._head, self._started = head, dict[str, subprocess.Popen[bytes]]()

    def start(self, name: str) -> Path:
        clone = self._head.parent / name
        if not clone.exists():
            clone_of(self._head, name)
        own = {"FLOWTUNE_ROOT": str(clone), "PREFECT_API_URL": str(PREFECT_API_URL.value())}
        command = [sys.executable, "-m", "pipeline.orchestration.worker", "--pool", "lab", "--slots", "1"]
        log = (self._head.parent / f"{name}.log").open("wb")
        self._started[name] = subprocess.Popen(
            command, cwd=clone, env=os.environ | own, stdout=log, stderr=log, start_new_session=True
        )
        return clone

    def kill(self, name: str) -> None:
        """Kill the worker and its children, as the loss of its machine does."""
        os.killpg(self._started.pop(name).pid, signal.SIGKILL)

    def stop(self) -> None:
        for name in list(self._started):
            self.kill(name)


@pytest.fixture
def workers(head: Path) -> Iterator[Workers]:
    made = Workers(head)
    yield made
    made.stop()


def test_workers_share_stages_and_the_head_gets_their_outputs(head: Path, workers: Workers) -> None:
    clones = [workers.start(name) for name in ("first", "second")]
    waiting = head.parent / "wait"
    waiting.touch()
    await_pool()
    release = subprocess.Popen(
        ["sh", "-c", f"while ! ls {head.parent}/*/trained-two.txt 2>/dev/null; do sleep 0.2; done; rm {waiting}"]
    )
    state = prefect_flows.tables("all", parallel=2, pool="lab", return_state=True)
    release.kill()
    assert state.is_completed(), state.message
    trained = [(head / f"trained-{task}.txt").read_text(encoding="utf-8").strip() for task in ("one", "two")]
    assert sorted(trained) == sorted(map(str, clones)), "each worker ran a stage"
    assert (head / "table.txt").read_text(encoding="utf-8").split() == trained
    # another clone gets the results without a run
    third = clone_of(head, "third")
    ran(sys.executable, "-m", "dvc", "repro", "--pull", "--quiet", cwd=third)
    assert (third / "table.txt").read_bytes() == (head / "table.txt").read_bytes()

    workers.kill("second")
    assert prefect_flows.sweep(["rate=2"], pool="lab", return_state=True).is_completed()
    listed = subprocess.run([sys.executable, "-m", "dvc", "exp", "list"], cwd=head, capture_output=True, check=True)
    assert len(listed.stdout.split()) > 1, "the experiment is in the head's repository"


def test_runs_survive_the_loss_of_a_head_and_of_a_worker(head: Path, workers: Workers) -> None:
    first, waiting = workers.start("first"), head.parent / "wait"
    await_pool()
    waiting.touch()
    killed = start_tables(head)
    given_out = awaited_by(killed)
    wait_for(lambda: any(first.glob("trained-*.txt")), "the worker to train", seconds=120)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    other = clone_of(head, "other")
    heads = [start_tables(root) for root in (head, other)]
    assert [awaited_by(run) for run in heads] == [given_out, given_out], "no stage is submitted twice"

    workers.kill("first")
    second = workers.start("second")
    waiting.unlink()
    with get_client(sync_client=True) as client:
        for lost in client.read_flow_runs():
            if lost.state and lost.state.type == StateType.RUNNING and lost.work_pool_name == "lab":
                client.set_flow_run_state(lost.id, Crashed(message="no heartbeat"))  # as the server does later
    for run in heads:
        output, _ = run.communicate(timeout=240)
        assert output.split()[-1:] == [b"COMPLETED"]
    assert (head / "table.txt").read_text(encoding="utf-8") == f"{second}\n{second}\n"
    assert (other / "table.txt").read_bytes() == (head / "table.txt").read_bytes()


def test_error_on_a_worker_reaches_the_head_in_one_line(head: Path, workers: Workers) -> None:
    workers.start("first")
    await_pool()
    lab, hook = pool.Pool("lab", head), head.parent / "hook"

    @flow
    def stage_error() -> str:
        with pytest.raises(StageError) as caught:
            lab.run_stage("train@one", "cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    hook.write_text("echo 'error: data/set.npz: not there' >&2; exit 1", encoding="utf-8")
    assert "error: data/set.npz: not there" in stage_error()
    hook.write_text("rm -rf ../remote; touch ../remote", encoding="utf-8")
    assert "DVC's remote: " in stage_error()


def test_invalid_pool_or_repository_gives_a_one_line_error(head: Path) -> None:
    assert "given 'nowhere', allowed: " in refused(head, "nowhere")
    (head / "dvc.yaml").write_text(DVC_YAML + "\n", encoding="utf-8")
    assert "dvc.yaml changed since the commit; commit them" in refused(head, "lab")
    (head / ".dvc" / "config.local").unlink()
    ran("git", "checkout", "-q", "dvc.yaml", cwd=head)
    assert "no DVC remote for the transfer of results; `make remote URL=…` sets one" in refused(head, "lab")


def test_workers_use_edited_settings_and_restore_committed_ones(tmp_path: Path) -> None:
    (head := tmp_path / "head").mkdir()
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (head / "params.yaml").write_text(text, encoding="utf-8")
    commit_all(head)
    ran("git", "clone", "-q", str(head), str(tmp_path / "worker"), cwd=tmp_path)
    committed = Origin.of(head)
    (head / "params.yaml").write_text(f"{text}# a remark\n", encoding="utf-8")
    for origin, carried in ((Origin.of(head), f"{text}# a remark\n"), (committed, text)):
        with as_at(origin, tmp_path / "worker"):
            assert (tmp_path / "worker" / "params.yaml").read_text(encoding="utf-8") == carried
    assert committed.settings is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"python": "3.99"}, "allowed: 3.99, as the run began with"),
        ({"commit": "0" * 40}, "allowed: 000000000000; `git fetch && git checkout 000000000000` there"),
    ],
)
def test_worker_with_other_code_or_python_is_refused(tmp_path: Path, change: dict[str, str], expected: str) -> None:
    (tmp_path / "params.yaml").touch()
    commit_all(tmp_path)
    with (
        pytest.raises(UserError, match=re.escape(expected)),
        as_at(Origin.of(tmp_path).model_copy(update=change), tmp_path),
    ):
        pass


def test_lost_runs_are_handled_by_one_automation() -> None:
    for _ in range(2):
        pool.crash_lost_runs()
    with get_client(sync_client=True) as client:
        (automation,) = client.read_automations_by_name(pool.LOST)
    assert automation.enabled


def refused(head: Path, name: str) -> str:
    with pytest.raises(UserError) as caught:
        pool.Pool(name, head)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def await_pool() -> None:
    def there() -> bool:
        with get_client(sync_client=True) as client:
            return any(each.name == "lab" for each in client.read_work_pools())

    wait_for(there, "a worker to make the pool", seconds=120, pause=0.2)
