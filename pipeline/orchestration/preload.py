"""Stages' programs in processes forked from one that has imported what they need.

Python imports torch and what else a stage needs in 3 to 10 s, the same anew for each of dozens.
"""

import importlib
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.utils.platform import name_process

_COMMAND = re.compile(r"exec python -m (stages\.\w+)((?: [\w./:,=-]+)*)")
"""A command that no shell changes a word of."""

_MONITOR_SECONDS = 10  # tqdm's own


class Program(NamedTuple):
    """What ``python -m module arguments…`` runs."""

    module: str
    arguments: list[str]


class Preloaded:
    """What this process has imported of programs, to run them in processes that are forked from it."""

    def __init__(self) -> None:
        self._began = time.time_ns()
        self._modules = set[str]()

    def __contains__(self, program: Program) -> bool:
        return program.module in self._modules

    def load(self, program: Program) -> None:
        """Import what ``program`` does. One that cannot be imported says so when it runs."""
        self._modules.add(program.module)
        with suppress(Exception):
            importlib.import_module(program.module)

    def is_current(self) -> bool:
        """Whether what was imported of this project still is what its files say."""
        files = [
            module.__file__
            for name, module in list(sys.modules.items())
            if name.split(".")[0] in ("pipeline", "stages") and getattr(module, "__file__", None)
        ]
        try:
            # not its time of modification, which copying may set to any
            return all(Path(file).stat().st_ctime_ns < self._began for file in files if file)
        except FileNotFoundError:
            return False

    def run(self, program: Program, env: Mapping[str, str]) -> int:
        """Run ``program`` in a forked process, in this folder; the exit code, or minus the signal that killed it.

        Meanwhile SIGINT is left to the program.
        """
        multiprocessing.current_process().daemon = False  # or it may not have children
        process = multiprocessing.get_context("fork").Process(target=_run, args=(program, dict(env)))
        process.start()
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.join()
        finally:
            signal.signal(signal.SIGINT, handler)
        assert process.exitcode is not None
        return process.exitcode


def program_of(command: str, cwd: str, env: Mapping[str, str]) -> Program | None:
    """The program that ``command`` runs in the folder ``cwd``; None where this Python would not run it so."""
    python = shutil.which("python", path=env.get("PATH"))
    found = _COMMAND.fullmatch(command)
    if not found or not python or Path(python).parent != Path(sys.executable).parent or not Path.cwd().samefile(cwd):
        return None
    return Program(found[1], found[2].split())


def _run(program: Program, env: Mapping[str, str]) -> None:
    """The life of a process that ``program`` runs in."""
    from tqdm import tqdm  # not above: it reads the environment, which a process that forks may have yet to set

    name_process(program.module.rpartition(".")[2])
    os.environ.clear()
    os.environ.update(env)
    for name in ("stages", program.module):  # they are imported now, in this process
        sys.modules.pop(name, None)
    tqdm.monitor_interval = _MONITOR_SECONDS  # a process that forks has it off, since it is a thread
    sys.argv[1:] = program.arguments
    try:
        runpy.run_module(program.module, run_name="__main__", alter_sys=True)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
