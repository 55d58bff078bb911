"""Serve other processes: a stage's program, or a stage, runs in a process forked from this one.

Python imports torch and what else a stage needs in seconds, the same anew for each of dozens. DVC starts each program
as ever; ``stages/__init__.py`` then hands it over (``pipeline.utils.handover``) to this process, which has imported
it. Where files of the project have changed since, the program runs by itself.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.orchestration.children import Children, Work, signal_group
from pipeline.utils.handover import ACCEPTED, CODE, LENGTH
from pipeline.utils.platform import name_process, socket_address

REQUEST_SECONDS = 5.0  # a caller sends all of a request at once
_MONITOR_SECONDS = 10  # tqdm's own


class Call:
    """A request of another process.

    Attributes:
        request: as it was sent. gone: whether the caller is no more.
    """

    def __init__(self, connection: socket.socket, children: Children) -> None:
        """Read a request.

        Raises:
            OSError, ValueError: there is no whole one.
        """
        self._connection, self._children, self._group, self.gone = connection, children, 0, False
        connection.settimeout(REQUEST_SECONDS)
        head, self._stdio, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
        children.private.update(self._stdio)
        with connection.makefile("rb") as file:
            self.request: dict[str, Any] = json.loads(file.read(*LENGTH.unpack(head.ljust(LENGTH.size, b"\0"))))

    def accept(self) -> None:
        """Tell the caller to wait."""
        self._children.watch(self._connection, self._heard)
        self._connection.sendall(ACCEPTED)

    def refuse(self) -> None:
        """Tell the caller to do it by itself."""
        self._connection.close()
        self._children.private.difference_update(self._stdio)
        for file in self._stdio:
            os.close(file)

    def run(self, name: str, work: Work, *, passes: bool = False) -> None:
        """Do ``work`` with the caller's stdin, stdout and stderr and tell it the exit code.

        Args:
            passes: the caller hears the interrupts that this process sends, and passes them on.
        """

        def tell(code: int) -> None:
            self._children.forget(self._connection)
            with suppress(OSError):
                self._connection.sendall(CODE.pack(code))
            self._connection.close()

        self._children.private.difference_update(self._stdio)
        self._group = self._children.start(name, work, tell, self._stdio, passes=passes)

    def print(self, text: str) -> None:
        """Print a line where the caller does."""
        with suppress(OSError):
            os.write(self._stdio[1], f"{text}\n".encode())

    def _heard(self) -> None:
        """Pass on a signal; kill the work of a caller that is gone."""
        number = b""
        with suppress(OSError):
            number = self._connection.recv(1)
        if not number:
            self.gone = True
            self._children.forget(self._connection)
        if self._group:
            signal_group(self._group, number[0] if number else signal.SIGKILL)


class Server:
    """A Unix socket at which other processes call."""

    def __init__(self, path: Path, children: Children, answer: Callable[[Call], object]) -> None:
        """Listen at ``path``, and give what is called for, but for programs of stages, to ``answer``.

        Raises:
            OSError: the socket cannot be made.
        """
        self._path, self._children, self._answer = path, children, answer
        self._began = time.time_ns()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        with socket_address(path) as where:
            self._listener.bind(where)
        self._listener.listen()
        children.watch(self._listener, self._accept)

    def close(self) -> None:
        """Listen no more."""
        self._children.forget(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        try:
            call = Call(connection, self._children)
            request = call.request
            module = request.get("module", "")
            if not module:
                call.accept()
                self._answer(call)
            elif not module.startswith("stages.") or request["python"] != sys.executable or not self._is_current():
                call.refuse()
            else:
                call.accept()
                with suppress(Exception):  # one that cannot be imported says so when it runs
                    importlib.import_module(module)
                name = request["environment"].get("DVC_STAGE", module)
                call.run(name, partial(_run, **request), passes=True)
        except (OSError, ValueError):  # the caller is gone
            connection.close()

    def _is_current(self) -> bool:
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


def _run(module: str, arguments: list[str], folder: str, environment: Mapping[str, str], **_: object) -> int:
    """The life of a process that a program runs in."""
    from tqdm import tqdm  # not above: it reads the environment, which a process that forks may have yet to set

    name_process(module.rpartition(".")[2])
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.modules.pop(module, None)  # it is imported now, in this process
    tqdm.monitor_interval = _MONITOR_SECONDS  # a process that forks has it off, since it is a thread
    sys.argv[1:] = arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0
