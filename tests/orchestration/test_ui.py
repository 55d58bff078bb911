"""``make ui``: both servers answer, errors name their cause, and Ctrl-C leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.orchestration import ui
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ui.HOST, 0))
        return int(probe.getsockname()[1])


def test_port_in_use_is_named_in_the_error() -> None:
    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} \(MLflow\).*--mlflow-port"):
            ui.require_free("MLflow", port)


def test_server_that_exits_is_named_with_its_last_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = ui.Server(["-c", "print('last words'); raise SystemExit(3)"], tmp_path, os.environ)
    server.process.wait()
    with pytest.raises(UserError, match="mlflow ended with exit code 3"):
        ui._require_alive({"mlflow": server})
    assert "last words" in capsys.readouterr().err


def test_both_uis_answer_and_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    root = tmp_path / "feature%2Flogin a?b#c ü"
    root.mkdir()
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")  # nothing answers there
    mlflow_port, prefect_port = free_port(), free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", ui.__name__, f"--mlflow-port={mlflow_port}", f"--prefect-port={prefect_port}"],
        cwd=ROOT,
        env={**os.environ, **proxies, "FLOWTUNE_ROOT": str(root), "HOME": "/proc/no-home"},
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    # printed once both servers answer and the deployments exist
    lines = [process.stdout.readline() for _ in range(5)]
    runs = f"http://127.0.0.1:{mlflow_port}/#/experiments/1/runs?"
    assert runs in lines[0]
    assert runs in lines[1] and "compareRunsMode=CHART" in lines[1] and "evaluate_rollouts" in lines[1]
    assert f":{prefect_port}" in lines[2]
    assert "no_proxy=127.0.0.1 prefect deployment run tables/table2" in lines[3]

    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    ui.require_free("MLflow", mlflow_port)
    ui.require_free("Prefect", prefect_port)
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in read(path)]
    assert not left
    assert {"mlflow.db", "prefect"} <= {path.name for path in (root / ".flowtune").iterdir()}
    assert (root / ".flowtune" / "prefect" / "prefect.db").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


def read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:  # it ended meanwhile
        return ""
