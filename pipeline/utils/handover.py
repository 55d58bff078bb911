"""Hand work over to the engine, a process that listens on a Unix socket and forks one with everything imported for it.

A caller connects, gives its stdin, stdout and stderr and a request as JSON, and waits for the exit code. It passes
signals on, one byte each; when it is gone, its work is killed. Only the standard library is imported, so that a stage's
program gets here in milliseconds.
"""

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.utils.platform import socket_address

ENGINE = "FLOWTUNE_ENGINE"
"""The variable that names the engine's socket to what it starts."""
ACCEPTED = b"y"
LENGTH, CODE = struct.Struct("!I"), struct.Struct("!i")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def socket_of(root: Path) -> Path:
    """The socket of the engine that works in ``root``."""
    return root / ".flowtune" / "engine.sock"


def call(path: Path, request: Mapping[str, object], stdio: Sequence[int]) -> socket.socket | None:
    """Ask the engine at ``path`` to do ``request`` with these file descriptors; None if it refuses.

    Raises:
        OSError: no engine listens there.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        with socket_address(path) as where:
            connection.connect(where)
        text = json.dumps(request).encode()
        socket.send_fds(connection, [LENGTH.pack(len(text))], stdio)
        connection.sendall(text)
        if connection.recv(1) == ACCEPTED:
            return connection
    except OSError:
        connection.close()
        raise
    connection.close()
    return None


def exit_code(connection: socket.socket) -> int | None:
    """Wait for the exit code of what was asked for, minus the signal that killed it; None: the engine is gone."""
    with connection:
        told = connection.recv(CODE.size, socket.MSG_WAITALL)
    return int(CODE.unpack(told)[0]) if len(told) == CODE.size else None


def run_by_engine() -> None:
    """Have the engine, if there is one, run the program that this process is about to, and exit as that does.

    Called while ``python -m`` imports the program's package. Returns if the program is to run here.
    """
    if ENGINE not in os.environ or sys.argv[:1] != ["-m"] or sys.orig_argv[1:2] != ["-m"]:
        return
    engine = os.environ.pop(ENGINE)
    request = {
        "python": sys.executable,
        "module": sys.orig_argv[2],
        "arguments": sys.argv[1:],
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
    }
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    connection = None
    with suppress(OSError):
        connection = call(Path(engine), request, (0, 1, 2))
    if connection:
        for number in _SIGNALS:
            signal.signal(number, partial(_pass_on, connection))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if connection:
        code = exit_code(connection)
        sys.exit(1 if code is None else code if code >= 0 else 128 - code)


def _pass_on(connection: socket.socket, number: int, _: object) -> None:
    with suppress(OSError):
        connection.send(bytes([number]))
