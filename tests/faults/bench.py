"""The temporary project of a trial, and the checks of its state after a fault."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.utils.platform import die_with_parent
from tests.project import Project

LIMIT_S = 900.0
"""The time limit of any run."""
GONE_S = 20.0
"""The time that processes may take to end after a kill."""

DRIVERS = {
    "make repro": ["-m", "pipeline.orchestration.repro", "--jobs", "2"],
    "dvc repro": ["-m", "dvc", "repro"],
    "Prefect flow": [
        "-c",
        "import sys; from pipeline.orchestration.prefect_flows import tables; "
        "sys.exit(not tables('all', parallel=2, return_state=True).is_completed())",
    ],
}
_INPUTS = re.compile(r"(    - path: data/inputs/.*\n      hash: md5\n      md5: )\w+")
_ENTRY = re.compile(r"^  (\S.*):\n((?:    .*\n)*)", re.MULTILINE)
_SAID = re.compile(r"error|warning|unable|failed", re.IGNORECASE)


@dataclass
class Run:
    """A driver that runs or has ended.

    Attributes:
        output: the file of its stdout and stderr. code: its exit code; None while it runs.
    """

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def wait(self) -> int:
        """Wait for its end; kill it after ``LIMIT_S``."""
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")

    def said(self) -> str:
        """Return the first line about an error; empty if there is none."""
        lines = [line.strip() for line in self.text().splitlines() if _SAID.search(line) and "step/s" not in line]
        errors = [line for line in lines if re.search(r"error|unable", line, re.IGNORECASE)]
        return (errors or lines or [""])[0]


@dataclass(frozen=True)
class Bench:
    """A project whose whole DAG has run, and a copy with some stale stages.

    Attributes:
        made: the undisturbed project. project: the copy. stages: the stale ones. env: of every run.
    """

    made: Project
    project: Project
    stages: list[str]
    env: dict[str, str]

    def start(self, driver: str, wrap: Sequence[str] = (), name: str = "run", **env: str) -> Run:
        """Start a driver, behind the command ``wrap``, in a session of its own."""
        output = self.project.root.parent / f"{name}.log"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*wrap, sys.executable, *DRIVERS[driver]],
                cwd=self.project.root,
                env=self.project.environment() | self.env | env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(_begin, os.getpid()),
            )
        return Run(process, output)

    def orphans(self) -> list[str]:
        """Kill processes that run in the project or name it after ``GONE_S``; return their commands."""
        end = time.monotonic() + GONE_S
        while (found := self._processes()) and time.monotonic() < end:
            time.sleep(0.05)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return list(found.values())

    def _processes(self) -> dict[int, str]:
        named = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.project.root) in command and int(path.name) != os.getpid():
                    named[int(path.name)] = command
        return self.project.processes() | named

    def damaged(self) -> list[str]:
        """Return committed files that are lost or differ from the undisturbed run's."""
        whole, here = self.made.files("reports"), self.project.files("reports")
        bad = [name for name, content in whole.items() if here.get(name) != content]
        settings = ("params.yaml", "dvc.yaml")
        bad += [
            name
            for name in settings
            if (self.made.root / name).read_text(encoding="utf-8")
            != (self.project.root / name).read_text(encoding="utf-8")
        ]
        lock = self.project.root / "dvc.lock"
        before = entries(self.made.root / "dvc.lock").keys() - set(self.stages)
        if not lock.exists() or not before <= entries(lock).keys() or not lock.read_bytes().endswith(b"\n"):
            bad.append("dvc.lock")
        return bad

    def different(self) -> list[str]:
        """Return reports, data files and dvc.lock if they differ from the undisturbed run's."""
        bad = []
        for folder in ("reports", "data"):
            whole, here = self.made.files(folder), self.project.files(folder)
            bad += [name for name in sorted({*whole, *here}) if whole.get(name) != here.get(name)]
        if entries(self.project.root / "dvc.lock") != entries(self.made.root / "dvc.lock"):
            bad.append("dvc.lock")
        return bad


def _begin(campaign: int) -> None:
    """Die with the campaign, and handle SIGINT, which shells let background programs ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent(campaign, signal.SIGKILL)


def entries(lock: Path) -> dict[str, str]:
    """Return the entries of a lock file by stage."""
    return dict(_ENTRY.findall(lock.read_text(encoding="utf-8")))


def make_bench(made: Project, root: Path, stages: Iterable[str], env: dict[str, str]) -> Bench:
    """Copy ``made`` to ``root`` and make ``stages`` stale: delete their data, and change their inputs in dvc.lock."""
    shutil.rmtree(root, ignore_errors=True)
    project = made.copy(root)
    for left in (".flowtune", ".dvc/cache/runs"):
        shutil.rmtree(project.root / left, ignore_errors=True)
    lock = project.root / "dvc.lock"
    text = lock.read_text(encoding="utf-8")
    for stage, entry in entries(lock).items():
        if stage in stages:
            stale, found = _INPUTS.subn(rf"\g<1>{'f' * 32}", entry)
            text = text.replace(f"  {stage}:\n{entry}", f"  {stage}:\n{stale}" if found else "")
            for out in outs(entry):
                path = project.root / out
                if not out.startswith("reports/"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    lock.write_text(text, encoding="utf-8")
    return Bench(made, project, list(stages), env)


def outs(entry: str) -> list[str]:
    """Return the output paths of a lock entry."""
    return re.findall(r"^    - path: (.*)$", entry.partition("    outs:\n")[2], re.MULTILINE)


def window(made: Project, draw: random.Random, kinds: Sequence[str] = ()) -> list[str]:
    """Draw one to three consecutive stages of the lock, or a single stage of one of ``kinds``."""
    names = list(entries(made.root / "dvc.lock"))
    starts = [at for at, name in enumerate(names) if not kinds or name.partition("@")[0] in kinds]
    first = draw.choice(starts)
    return names[first : first + (1 if kinds else draw.randint(1, 3))]
