"""The throw-away project that a fault is let loose on, and the judgement of what it left."""

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
"""The longest that any run may take."""
GONE_S = 20.0
"""How long after a kill its processes may take to be gone."""

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
    """A driver at work, or one that has ended.

    Attributes:
        output: a file of its stdout and stderr. code: of its exit, once it has ended.
    """

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def wait(self) -> int:
        """Wait until it has ended; one that takes longer than ``LIMIT_S`` is killed."""
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")

    def said(self) -> str:
        """The first line about what went wrong; empty where there is none."""
        lines = [line.strip() for line in self.text().splitlines() if _SAID.search(line) and "step/s" not in line]
        told = [line for line in lines if re.search(r"error|unable", line, re.IGNORECASE)]
        return (told or lines or [""])[0]


@dataclass(frozen=True)
class Bench:
    """A project whose whole DAG has been made, and a copy of which some stages are out of date.

    Attributes:
        made: the undisturbed one. project: the copy. stages: those to be made again. env: of every run.
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
        """Commands that still run in the project or name it, after ``GONE_S``; they are killed."""
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
        """Committed files that are gone, or are not what they were before, which an undisturbed run makes again."""
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
        """Reports, data and entries of the lock that are not, to the byte, those of the undisturbed run."""
        bad = []
        for folder in ("reports", "data"):
            whole, here = self.made.files(folder), self.project.files(folder)
            bad += [name for name in sorted({*whole, *here}) if whole.get(name) != here.get(name)]
        if entries(self.project.root / "dvc.lock") != entries(self.made.root / "dvc.lock"):
            bad.append("dvc.lock")
        return bad


def _begin(campaign: int) -> None:
    """End with the campaign, and hear Ctrl-C, which a shell has programs in the background ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent(campaign, signal.SIGKILL)


def entries(lock: Path) -> dict[str, str]:
    """The entries of a lock file by stage."""
    return dict(_ENTRY.findall(lock.read_text(encoding="utf-8")))


def make_bench(made: Project, root: Path, stages: Iterable[str], env: dict[str, str]) -> Bench:
    """Copy ``made`` to ``root`` and put ``stages`` out of date: data gone, of other inputs by dvc.lock."""
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
    """The output paths of a lock entry."""
    return re.findall(r"^    - path: (.*)$", entry.partition("    outs:\n")[2], re.MULTILINE)


def window(made: Project, draw: random.Random, kinds: Sequence[str] = ()) -> list[str]:
    """One to three stages that follow each other in the lock, from anywhere in it or the first of one of ``kinds``."""
    names = list(entries(made.root / "dvc.lock"))
    starts = [at for at, name in enumerate(names) if not kinds or name.partition("@")[0] in kinds]
    first = draw.choice(starts)
    return names[first : first + (1 if kinds else draw.randint(1, 3))]
