"""Temporary copies of the project, whose programs tests run as users do."""

import atexit
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.settings import schema
from pipeline.settings.inputs import resolved_inputs
from pipeline.tracking import queue
from pipeline.utils.atomic import write_text
from pipeline.utils.handover import SERVER
from pipeline.utils.platform import FORK_IS_SAFE

ROOT = Path(__file__).resolve().parent.parent

DATABASE = Path(".flowtune", "mlflow.db")
ALONE = {SERVER: ""}
"""Environment of programs that run without ``program_server`` and import everything themselves."""


@dataclass(frozen=True)
class Project:
    """A copy of the project in the folder ``root``; ``env``: of its programs."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Return the environment of programs run here, without the caller's settings, and with tracking off."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLOWTUNE_", "DVC_", "MLFLOW_", "PYTEST_", "GIT_"))
            and name not in ("PYTHONPATH", "SHELL")  # without SHELL, DVC uses /bin/sh
        }
        tools = Path(sys.executable).parent
        return {
            **inherited,
            "PATH": os.pathsep.join([str(tools), inherited["PATH"]]),
            "OMP_NUM_THREADS": "1",
            "FLOWTUNE_TRACKING": "off",
            "DVC_NO_ANALYTICS": "true",
            "DVC_SITE_CACHE_DIR": str(self.root / ".flowtune" / "dvc"),  # as `make env` has it for a project's Python
            # no DVC settings of the user or the machine
            "DVC_GLOBAL_CONFIG_DIR": str(self.root / ".dvc" / "global"),
            "DVC_SYSTEM_CONFIG_DIR": str(self.root / ".dvc" / "system"),
            **self.env,
        }

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start ``python -m <arguments>`` in its own session."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(**self._program(arguments, env), **pipes, start_new_session=True)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m <arguments>`` to its end."""
        return subprocess.run(**self._program(arguments, env), capture_output=True, check=False)

    def _program(self, arguments: tuple[str, ...], env: dict[str, str]) -> dict[str, Any]:
        """Return the arguments of ``subprocess`` for a program; its stages run in ``program_server`` by default."""
        self._resolve_for(*arguments)
        env = {SERVER: program_server()} | self.environment() | env
        command = [sys.executable, "-m", *arguments]
        return {"args": command, "cwd": self.root, "env": env, "stdin": subprocess.DEVNULL, "encoding": "utf-8"}

    def _resolve_for(self, program: str, *_: str) -> None:
        """Write the inputs of a stage that is started directly, if params.yaml has changed."""
        settings, inputs = self.root / "params.yaml", self.root / "data" / "inputs"
        by_hand = program.startswith("stages.") and program != "stages.resolve" and settings.exists()
        written = max((path.stat().st_mtime for path in inputs.rglob("*.json")), default=0.0)
        if by_hand and settings.stat().st_mtime > written:
            self.run("stages.resolve")

    def check(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program that must succeed."""
        result = self.run(*arguments, **env)
        assert result.returncode == 0, f"{' '.join(arguments)}\n{result.stdout}\n{result.stderr}"
        return result

    def copy(self, root: Path, **env: str) -> "Project":
        """Copy the project with all its files to ``root``."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root, env)

    def params(self, key: str, value: object) -> None:
        """Set a key of params.yaml, such as ``starter.pusht.seed``."""
        document = read_yaml(self.root / "params.yaml")
        *blocks, last = key.split(".")
        reduce(getitem, blocks, document)[last] = value
        write_yaml(document, self.root / "params.yaml")

    def keep_stages(self, *names: str) -> None:
        """Keep only these stages in dvc.yaml."""
        stages = read_yaml(self.root / "dvc.yaml")["stages"]
        write_yaml({"stages": {name: stages[name] for name in names}}, self.root / "dvc.yaml")

    def value(self, key: str) -> Any:
        """Return the value of a key of params.yaml."""
        return reduce(getitem, key.split("."), read_yaml(self.root / "params.yaml"))

    def files(self, folder: str) -> dict[str, bytes]:
        """Return path → content of all files below ``folder``."""
        paths = sorted((self.root / folder).rglob("*"))
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths if path.is_file()}

    def put_database(self, content: bytes) -> None:
        """Put MLflow's database in place, which MLflow would need seconds to make."""
        (self.root / DATABASE).parent.mkdir(exist_ok=True)
        (self.root / DATABASE).write_bytes(content)

    def recorded(self) -> None:
        """Wait until all records of stages are in MLflow."""
        assert queue.drain(self.root, 300), "timeout: the recorder"

    def processes(self) -> dict[int, str]:
        """Return process id → command line of every process that runs in this folder."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "cwd").resolve(strict=True) == self.root.resolve():
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if command:  # a zombie has none
                        found[int(process.name)] = command
        return found


def on_another_system(root: Path) -> None:
    """Make the project in ``root`` use its fallbacks for systems other than Linux."""
    platform = root / "pipeline" / "utils" / "platform.py"
    text, found = re.subn(r"^LINUX = .*$", "LINUX = False", platform.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found
    platform.write_text(text, encoding="utf-8")


@cache
def program_server() -> str:
    """Start ``tests.program_server`` for this process; return its socket, empty where forks are unsafe."""
    if not FORK_IS_SAFE:
        return ""
    folder = tempfile.mkdtemp(prefix="flowtune-programs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    socket = Path(folder, "socket")
    env = os.environ | {"OMP_NUM_THREADS": "1", "MPLCONFIGDIR": folder, "PYTHONPATH": ""}
    server = subprocess.Popen([sys.executable, "-m", "tests.program_server", str(socket)], cwd=ROOT, env=env)
    wait_for(lambda: socket.exists() or server.poll() is not None, "the server of programs to listen")
    return str(socket)


def executed(output: str) -> list[str]:
    """Return the stages that ``dvc repro`` ran, from its output."""
    return re.findall(r"Running stage '([^']+)'", output)


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float = 300, pause: float = 0.01) -> None:
    """Wait until ``condition``; fail with ``what`` if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"timeout: {what}"
        time.sleep(pause)


def commit_all(root: Path) -> None:
    """Make ``root`` a Git repository, with all its files in a commit."""
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "start"]):
        subprocess.run([*git, *command], cwd=root, check=True)


def kill(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to the process, and not to its group."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def copy_code(root: Path) -> None:
    """Copy the project's code with its bytecode to ``root``."""
    for folder in ("pipeline", "stages"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("*.pyc.*"))  # partly written ones


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def write_yaml(values: dict[str, Any], path: Path) -> None:
    """Write plain values without aliases."""
    yaml = YAML(typ="safe")
    yaml.representer.ignore_aliases = lambda _: True
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(values, file)


def write_settings(values: dict[str, Any]) -> None:
    """Write params.yaml and the inputs of all stages into the current folder."""
    write_yaml(values, Path("params.yaml"))
    write_inputs()


def write_inputs() -> None:
    """Write the inputs of all stages in the current folder, as ``resolve`` does."""
    for path, text in resolved_inputs(schema.load()).items():
        write_text(path, text)


def write_checksum(path: Path) -> None:
    """Write ``<path>.sha256`` as ``sha256sum`` does."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n", encoding="utf-8")
