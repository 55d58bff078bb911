"""Measure a pool of workers that run sleeping stages, each worker in its own clone, with a folder as DVC remote."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from pipeline.utils.code_deps import ROOT

POOL = "scaling"
_START_SECONDS, _ASK_SECONDS, _IDLE_SECONDS = 300, 0.5, 30
_STAGE = """\
  sleep-{number}:
    cmd: sleep {seconds:g}; seq {number} 20000 > model-{number}.txt; echo {number} > report-{number}.csv
    deps: [params.yaml]
    outs: [model-{number}.txt]
    plots: [report-{number}.csv: {{cache: false}}]
"""
_HEAD = f"""
from pathlib import Path
from prefect import flow
from pipeline.orchestration.plan import ask_plan
from pipeline.orchestration.prefect_flows import make_stages

@flow
def head(root):
    make_stages(ask_plan(root), root, 64, "{POOL}")

head(Path.cwd())
"""
_REQUEST = re.compile(r'"[A-Z]+ /api/\S* HTTP')


class Row(NamedTuple):
    """Measured number: ``quantity`` of ``part`` at a size, such as 4 (``size``) workers (``size_of``)."""

    part: str
    size_of: str
    size: int
    quantity: str
    value: float
    unit: str


class _Spent(NamedTuple):
    """Wall-clock time, processor time of each part, and requests to Prefect so far; times in seconds."""

    wall: float
    head: float
    workers: float
    server: float
    requests: float


class _Server(NamedTuple):
    """Prefect server: its process, address, database, and log with a line per request."""

    process: psutil.Process
    url: str
    database: Path
    log: Path

    def requests(self) -> int:
        return len(_REQUEST.findall(self.log.read_text(encoding="utf-8", errors="replace")))


def measure_pool(workers: int, stages: int, sleep: float) -> Iterator[Row]:
    """Yield the costs of a pool of ``workers``, one stage at a time each, for ``stages`` of ``sleep`` seconds each."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        head = _project(folder / "head", stages, sleep)
        clones = [_clone(head, folder / f"worker-{number}") for number in range(workers)]
        server = stack.enter_context(_prefect_server(folder))
        at_work = [stack.enter_context(_worker(clone, server.url)) for clone in clones]
        _await(lambda: all("started" in _log_of(clone).read_text(encoding="utf-8") for clone in clones))

        def spent() -> _Spent:
            return _Spent(
                time.monotonic(), _children(), sum(map(_seconds, at_work)), _seconds(server.process), server.requests()
            )

        first, size = spent(), server.database.stat().st_size
        time.sleep(_IDLE_SECONDS)
        begun = spent()
        command = [sys.executable, "-c", _HEAD]
        subprocess.run(command, cwd=head, env=_environment(head, server.url), check=True, capture_output=True)
        ended = spent()
        idle = _Spent(
            *((after - before) / (begun.wall - first.wall) for before, after in zip(first, begun, strict=True))
        )
        wall = ended.wall - begun.wall
        of = _Spent(
            *((last - start - rate * wall) / stages for start, last, rate in zip(begun, ended, idle, strict=True))
        )
        files = [path.stat().st_size for path in (folder / "remote").rglob("*") if path.is_file()]
        found: Sequence[tuple[str, float, str]] = (
            ("all stages, wall", wall, "s"),
            ("head, a stage", of.head, "s"),
            ("worker, a stage", of.workers, "s"),
            ("Prefect's server, a stage", of.server, "s"),
            ("requests to Prefect, a stage", of.requests, "requests"),
            ("Prefect's server, idle", idle.server, "s/s"),
            ("requests to Prefect, idle", idle.requests, "requests/s"),
            ("Prefect's database, a stage", (server.database.stat().st_size - size) / stages / 1000, "kB"),
            ("files at the remote, a stage", len(files) / stages, "files"),
            ("the remote, a stage", sum(files) / stages / 1000, "kB"),
        )
        for quantity, value, unit in found:
            yield Row("pool", "workers", workers, quantity, value, unit)


def _project(root: Path, stages: int, sleep: float) -> Path:
    root.mkdir()
    described = "".join(_STAGE.format(number=number, seconds=sleep) for number in range(stages))
    (root / "dvc.yaml").write_text("stages:\n" + described, encoding="utf-8")
    (root / ".gitignore").write_text("*.txt\n*.csv\n.flowtune\n", encoding="utf-8")
    shutil.copy(ROOT / "params.yaml", root)  # an input of the stages, and compared by workers
    for words in ("git init -q", f"{sys.executable} -m dvc init -q", "git add ."):
        _run(words.split(), root)
    _run([*("git", "-c", "user.name=scaling", "-c", "user.email=scaling@localhost"), "commit", "-q", "-m", "x"], root)
    return _sharing(root)


def _clone(head: Path, root: Path) -> Path:
    _run(["git", "clone", "-q", str(head), str(root)], head)
    return _sharing(root)


def _sharing(root: Path) -> Path:
    remote = ["remote", "add", "--quiet", "--local", "--default", "shared", str(root.parent / "remote")]
    _run([sys.executable, "-m", "dvc", *remote], root)
    return root


def _run(command: Sequence[str], root: Path) -> None:
    subprocess.run(command, cwd=root, check=True, capture_output=True)


@contextmanager
def _prefect_server(folder: Path) -> Iterator[_Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_LOGGING_LEVEL": "INFO"}
    log, url = folder / "server.log", f"http://127.0.0.1:{port}/api"
    command = [*("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))]
    with _started(command, folder, os.environ | own, log) as process:
        _await(lambda: httpx.get(f"{url}/health").is_success)
        yield _Server(process, url, folder / "prefect" / "prefect.db", log)


@contextmanager
def _worker(clone: Path, url: str) -> Iterator[psutil.Process]:
    command = ["-m", "pipeline.orchestration.worker", "--pool", POOL, "--slots", "1"]
    with _started(command, clone, _environment(clone, url), _log_of(clone)) as process:
        yield process


def _log_of(clone: Path) -> Path:
    return clone.with_suffix(".log")


@contextmanager
def _started(command: Sequence[str], folder: Path, env: dict[str, str], log: Path) -> Iterator[psutil.Process]:
    with log.open("wb") as file:
        process = psutil.Popen([sys.executable, *command], cwd=folder, env=env, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _environment(root: Path, url: str) -> dict[str, str]:
    return os.environ | {"FLOWTUNE_ROOT": str(root), "PYTHONPATH": str(ROOT), "PREFECT_API_URL": url}


def _children() -> float:
    """Return the processor time of the ended children of this process: the head."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds(process: psutil.Process) -> float:
    """Return the processor time of a process and its ended children."""
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def _await(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        try:
            if holds():
                return
        except httpx.HTTPError:
            pass
        time.sleep(_ASK_SECONDS)
    raise TimeoutError(f"servers and workers did not start within {_START_SECONDS} s")
