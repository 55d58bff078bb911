"""Hand a stage's program over to the program server, which has the needed modules imported already.

The program connects to the server's Unix socket. It sends its stdin, stdout and stderr and a request as JSON, and waits
for the exit code. It forwards signals, one byte each. If the program dies, the server kills its work. Only the standard
library is imported here, so that a program gets here in milliseconds.
"""

import json
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

from pipeline.utils.platform import socket_address

SERVER = "FLOWTUNE_PROGRAM_SERVER"
"""The environment variable that holds the path of the server's socket."""
ACCEPTED = b"y"
LENGTH, CODE = struct.Struct("!I"), struct.Struct("!i")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_by_server() -> None:
    """Let the server, if there is one, run this process's program; then exit with the program's exit code.

    Called while ``python -m`` imports the program's package. Returns if the program must run in this process.
    """
    server = os.environ.pop(SERVER, "")
    if not server or sys.argv[:1] != ["-m"] or sys.orig_argv[1:2] != ["-m"]:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    connection = _call(Path(server))
    if connection:

        def pass_on(number: int, _: object) -> None:
            with suppress(OSError):
                connection.send(bytes([number]))

        for number in _SIGNALS:
            signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if connection:
        told = connection.recv(CODE.size, socket.MSG_WAITALL)
        code = CODE.unpack(told)[0] if len(told) == CODE.size else 1  # 1: the server is gone
        sys.exit(code if code >= 0 else 128 - code)


def _call(server: Path) -> socket.socket | None:
    """Ask the server to run this process's program with its stdin, stdout and stderr; None if it does not."""
    request = {
        "python": sys.executable,
        "module": sys.orig_argv[2],
        "arguments": sys.argv[1:],
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
    }
    text = json.dumps(request).encode()
    connection = socket.socket(socket.AF_UNIX)
    with suppress(OSError):
        with socket_address(server) as where:
            connection.connect(where)
        socket.send_fds(connection, [LENGTH.pack(len(text))], (0, 1, 2))
        connection.sendall(text)
        if connection.recv(1) == ACCEPTED:
            return connection
    connection.close()
    return None
