"""Serve the MLflow UI and Prefect with its deployments until Ctrl-C (``make ui``)."""

import argparse
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from pipeline.tracking.experiment import open_store
from pipeline.tracking.queue import entries, start_recorder
from pipeline.tracking.store import artifact_uri, sqlite_url, store_uri
from pipeline.utils import processes
from pipeline.utils.environment import project_root
from pipeline.utils.errors import UserError

HOST = "127.0.0.1"
START_SECONDS = 120
POLL_SECONDS = 0.2
LAST_LINES = 20

MODEL_TRAINING = "workflowType=machine_learning"
"""Makes the MLflow UI show its views for model training instead of language models."""

_COMPARED = "tags.stage LIKE 'evaluate_rollouts%' and params.method LIKE '%fm' and params.method != 'resft_fm'"
COMPARISON = f"compareRunsMode=CHART&orderByKey=attributes.end_time&orderByAsc=false&searchFilter={quote(_COMPARED)}"
"""Makes it chart FM against FT-FM, latest first. Runs sorted by end time are not folded into their parents."""


class StopRequest(BaseException):
    """Raised on SIGINT or SIGTERM."""


def run(root: Path, mlflow_port: int, prefect_port: int) -> None:
    """Start the three servers, print their addresses, and stop all of them on a signal.

    Raises:
        UserError: a port is taken, or a server ended or did not answer.
    """
    for name, port in (("MLflow", mlflow_port), ("Prefect", prefect_port)):
        require_free(name, port)
    children: dict[str, Server] = {}
    environment = _environment(root, prefect_port)
    _raise_on_signals()
    try:
        children["prefect"] = Server(_prefect_command(prefect_port), root, environment)
        if entries(root):  # a crash of the machine leaves unfinished runs
            start_recorder(root)
        experiment = open_store(root)
        children["mlflow"] = Server(_mlflow_command(mlflow_port, root), root, environment)
        _wait_for(f"http://{HOST}:{prefect_port}/api/health", children)
        children["flows"] = Server(
            ["-c", "from pipeline.orchestration.prefect_flows import serve; serve()"], root, environment
        )
        _wait_for(f"http://{HOST}:{mlflow_port}/health", children)
        _wait_for(f"http://{HOST}:{prefect_port}/api/deployments/name/sweep/sweep", children)  # created last
        shown = f"http://{HOST}:{mlflow_port}/#/experiments/{experiment}"
        print(f"MLflow   {shown}/runs?{MODEL_TRAINING}")
        print(f"Charts   {shown}/runs?{MODEL_TRAINING}&{COMPARISON}")
        if elsewhere := os.environ.get("MLFLOW_TRACKING_URI"):
            print(f"         local runs only; MLFLOW_TRACKING_URI sends new runs to {elsewhere}")
        print(f"Prefect  http://{HOST}:{prefect_port}")
        past_proxy = "no_proxy=127.0.0.1 " if {"http", "all"} & set(urllib.request.getproxies_environment()) else ""
        print(f"Run      {past_proxy}prefect deployment run tables/table2 --watch")
        print("Stop     Ctrl-C", flush=True)
        while True:
            _require_alive(children)
            time.sleep(POLL_SECONDS)
    except StopRequest:
        print("stopping", flush=True)
    finally:
        for name in reversed(children):  # the flows first: they report stopped runs to Prefect's server
            processes.stop([children[name].process])


class Server:
    """Child process whose last lines are kept and shown only if it fails; the UIs show the rest better."""

    def __init__(self, arguments: list[str], root: Path, environment: Mapping[str, str]) -> None:
        self.process = processes.start([sys.executable, *arguments], cwd=root, env=environment)
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self.lines.extend, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def ended(self) -> int | None:
        """Return the exit code once the process has ended and its last lines are read; None before."""
        if self.process.poll() is None:
            return None
        self._reader.join(timeout=5)
        return self.process.returncode


def require_free(name: str, port: int) -> None:
    """Check that a server can listen on ``port``.

    Raises:
        UserError: another process listens there already.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} ({name}): {error.strerror}; stop what uses it, or choose another with "
                f"--{name.lower()}-port"
            ) from None


def _mlflow_command(port: int, root: Path) -> list[str]:
    return [
        *("-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", store_uri(root), "--default-artifact-root", artifact_uri(root)),
    ]


def _prefect_command(port: int) -> list[str]:
    return ["-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]


def _environment(root: Path, prefect_port: int) -> dict[str, str]:
    code = str(Path(__file__).resolve().parents[2])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "FLOWTUNE_ROOT": str(root),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": sqlite_url(
            "sqlite+aiosqlite", Path(os.environ["PREFECT_HOME"], "prefect.db")
        ),
        "PREFECT_API_URL": f"http://{HOST}:{prefect_port}/api",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four times faster responses
    }


def _wait_for(url: str, children: Mapping[str, Server]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        _require_alive(children)
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(POLL_SECONDS)
    raise UserError(f"{url}: no answer within {START_SECONDS} s")


def _require_alive(children: Mapping[str, Server]) -> None:
    for name, child in children.items():
        if (code := child.ended()) is not None:
            sys.stderr.writelines(child.lines)
            raise UserError(f"{name} ended with exit code {code}, see its last lines above; the others are stopped")


def _raise_on_signals() -> None:
    """Turn the first SIGINT or SIGTERM into ``StopRequest``; ignore later ones, which would break the stopping."""

    def handle(*_: object) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        raise StopRequest

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handle)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.orchestration.ui", description=__doc__)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--prefect-port", type=int, default=4200)
    arguments = parser.parse_args()
    try:
        run(project_root(), arguments.mlflow_port, arguments.prefect_port)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
