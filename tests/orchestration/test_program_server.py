"""Programs that DVC starts and a server process with loaded imports runs."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.utils.handover import SERVER
from tests.orchestration.test_executor import importing
from tests.project import Project, wait_for

WAITING = """
import sys, time
from pathlib import Path

if __name__ == "__main__":
    try:
        Path("at work").touch()
        print("working", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        sys.exit(7)
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Yield a project with a running server, in a folder whose path is too long for a socket's address."""
    project = importing(tmp_path / ("long" * 25))
    (project.root / "stages" / "waiting.py").write_text(WAITING, encoding="utf-8")
    socket = project.root / ".flowtune" / "programs.sock"
    server = project.start("pipeline.orchestration.program_server", str(socket))
    wait_for(socket.exists, "the server to listen", seconds=60)
    project.env[SERVER] = str(socket)
    yield project
    server.terminate()
    server.wait(60)
    assert not project.processes()


def imports(project: Project) -> int:
    """Return the number of processes that imported the program's module."""
    return len((project.root / "imports").read_text(encoding="utf-8").split())


def test_exit_code_and_output_are_passed_through(project: Project) -> None:
    project.check("stages.program", "a.txt")
    failed = project.run("stages.program", "a.txt", "fail")
    assert failed.returncode == 1 and failed.stderr.endswith("ValueError: on purpose\n")
    missing = project.run("stages.missing")
    assert missing.returncode == 1 and "stages.missing" in missing.stderr
    assert imports(project) == 2  # in the server, and in the process that the program spawned
    project.check("stages.program", "a.txt", **{SERVER: "/nowhere/programs.sock"})
    assert imports(project) == 4


def test_signals_to_the_caller_reach_the_program(project: Project) -> None:
    for number, code in ((signal.SIGINT, 7), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        (project.root / "at work").unlink(missing_ok=True)
        caller = project.start("stages.waiting")
        wait_for((project.root / "at work").exists, "the program to be at work", seconds=60)
        assert len(project.processes()) == 3  # with the server
        os.kill(caller.pid, number)
        out, _ = caller.communicate(timeout=60)
        assert (out, caller.returncode) == ("working\n", code)
        wait_for(lambda: len(project.processes()) == 1, "the program to end", seconds=60)
