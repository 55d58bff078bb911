"""Run stage programs in processes forked from this server, which has imported their modules already.

The import of torch and other modules takes seconds in each of dozens of stages. DVC starts a program as usual, and
``stages/__init__.py`` hands it over to this server (``pipeline.utils.handover``). If an imported file has changed,
programs run by themselves.

``python -m pipeline.orchestration.program_server SOCKET`` serves until it is killed; its programs die with it.
"""

import importlib
import json
import multiprocessing
import os
import runpy
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.settings.kinds import KINDS, STUDY_KINDS
from pipeline.utils.handover import ACCEPTED, CODE, LENGTH
from pipeline.utils.platform import die_with_parent, name_process, socket_address

_KINDS = {**KINDS, **STUDY_KINDS}
REQUEST_SECONDS = 5.0  # a caller sends its whole request at once
_MONITOR_SECONDS = 10  # tqdm's default


class Server:
    """Server on a Unix socket that runs stage programs."""

    def __init__(self, path: Path) -> None:
        """Listen at ``path``; raise an ``OSError`` if the socket cannot be created."""
        self._began = time.time_ns()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        with socket_address(path) as where:
            self._listener.bind(where)
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def serve(self) -> None:
        """Handle requests, signals and ended programs forever."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        with suppress(OSError, ValueError):  # the caller is gone
            connection.settimeout(REQUEST_SECONDS)
            head, stdio, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
            try:
                with connection.makefile("rb") as file:
                    request = json.loads(file.read(*LENGTH.unpack(head.ljust(LENGTH.size, b"\0"))))
                if request["python"] == sys.executable and self._is_current():
                    self._run(connection, stdio, request)
                    return
            finally:
                for descriptor in stdio:
                    os.close(descriptor)
        connection.close()

    def _run(self, connection: socket.socket, stdio: Sequence[int], request: dict[str, Any]) -> None:
        """Start a program, forward its caller's signals to it, and send its exit code to the caller."""
        stage = request["environment"].get("DVC_STAGE", "").rpartition(":")[2].partition("@")[0]
        for module in (request["module"], *(_KINDS[stage].modules if stage in _KINDS else ())):
            with suppress(Exception):  # an import error shows when the program runs
                importlib.import_module(module)
        process = multiprocessing.get_context("fork").Process(
            target=_live, args=(os.getpid(), stdio), kwargs=request, daemon=True
        )
        process.start()
        connection.sendall(ACCEPTED)

        def hear() -> None:
            number = b""
            with suppress(OSError):
                number = connection.recv(1)
            if not number:  # the caller was killed
                self._selector.unregister(connection)
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, number[0] if number else signal.SIGKILL)

        def end() -> None:
            process.join()
            self._selector.unregister(process.sentinel)
            with suppress(KeyError):
                self._selector.unregister(connection)
            with suppress(OSError):
                connection.sendall(CODE.pack(process.exitcode or 0))
            connection.close()
            process.close()

        self._selector.register(connection, selectors.EVENT_READ, hear)
        self._selector.register(process.sentinel, selectors.EVENT_READ, end)

    def _is_current(self) -> bool:
        """Tell whether all imported files of this project are older than the server."""
        files = [
            module.__file__
            for name, module in list(sys.modules.items())
            if name.split(".")[0] in ("pipeline", "stages") and getattr(module, "__file__", None)
        ]
        try:
            # not st_mtime, which a copy may set to any time
            return all(Path(file).stat().st_ctime_ns < self._began for file in files if file)
        except FileNotFoundError:
            return False


def _live(
    server: int,
    stdio: Sequence[int],
    *,
    module: str,
    arguments: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    **_: object,
) -> None:
    """Run a program in this forked process, and exit as the program does."""
    from tqdm import tqdm  # not at module level: it reads the environment

    os.setpgid(0, 0)
    die_with_parent(server, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.current_process().daemon = False  # a daemon may not have children
    for number, descriptor in enumerate(stdio):
        os.dup2(descriptor, number)
        os.close(descriptor)
    name_process(module.rpartition(".")[2])
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.modules.pop(module, None)  # the program is imported anew in this process
    tqdm.monitor_interval = _MONITOR_SECONDS
    sys.argv[1:] = arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def main() -> None:
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # its monitor is a thread, and this process forks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # each program gets signals from its caller
    Server(Path(sys.argv[1])).serve()


if __name__ == "__main__":
    main()
