"""Start child processes that never outlive their parent.

Each command runs under a small supervisor: ``_supervise`` of this module in a Python of its own. The supervisor starts
the command in a new session. When the parent dies, by whatever cause, it ends the command and everything that the
command started. Only the standard library is imported, so that the supervisor starts in milliseconds.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.utils import platform

GRACE_SECONDS = 10  # between SIGTERM and SIGKILL
EMPTY_POLL_SECONDS = 0.05

_ENDING = {signal.SIGTERM, signal.SIGINT}

_SUPERVISOR = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from pipeline.utils.processes import _supervise
sys.exit(_supervise(int(sys.argv[1]), sys.argv[2:]))
"""


def start(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start ``command`` under a supervisor; its stdout and stderr come line by line from the ``stdout`` pipe.

    SIGTERM or SIGINT to the returned process goes to the command's whole process group. SIGKILL follows after
    ``GRACE_SECONDS``. The return code is the command's, or 128 + n if signal n killed it.

    The kernel ties the supervisor to the calling *thread*. That thread must live until the command has ended.
    """
    root = Path(__file__).resolve().parents[2]
    supervisor = [sys.executable, "-I", "-c", _SUPERVISOR, str(root), str(os.getpid())]
    return subprocess.Popen(
        [*supervisor, *command],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def stop(processes: Iterable[subprocess.Popen[str]], number: int = signal.SIGTERM) -> None:
    """End processes made by ``start``, all at once, and wait until they and what they started are gone.

    Args:
        number: the signal to end them by, SIGTERM or SIGINT.
    """
    processes = list(processes)
    for process in processes:
        process.send_signal(number)
    for process in processes:
        process.wait()


class Group:
    """Group of processes that several threads start and one call stops; afterwards none starts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def start(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str] | None:
        """Start ``command`` as ``start`` of this module does; None if the group was stopped."""
        with self._lock:
            if self.stopped:
                return None
            self._running = {process for process in self._running if process.returncode is None}
            process = start(command, cwd=cwd, env=env)
            self._running.add(process)
        return process

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop all running processes, as ``stop`` of this module does."""
        with self._lock:
            self.stopped = True
        stop(self._running, number)


def identity(pid: int) -> str:
    """Name a process uniquely, as host/boot/pid/start; the system reuses pids."""
    return f"{socket.gethostname()}/{platform.boot_id()}/{pid}/{platform.started(pid)}"


def is_gone(name: str) -> bool:
    """Tell whether the process with this ``identity`` ran on this host since its boot and has ended."""
    *place, pid, _ = name.split("/") if name.count("/") == 3 else ("", "0", "")
    return place == identity(os.getpid()).split("/")[:2] and name != identity(int(pid))


def ancestor(program: str) -> int | None:
    """Return the pid of the nearest ancestor that runs ``program`` (as a script, or with ``python -m``)."""
    import psutil

    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            words = process.cmdline()
            if program in [Path(word).name for word in words[:2]] or words[1:3] == ["-m", program]:
                return process.pid
    return None


def _signal_group(group: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signum)


def _prepare_child(supervisor: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)  # the mask is inherited
    if platform.LINUX:  # elsewhere this ends with the exec that follows: a killed supervisor leaves its command running
        platform.die_with_parent(supervisor)


def _wait_for_adopted(group: int) -> None:
    """Wait until a process group is empty; init has adopted its remaining processes."""
    deadline = time.monotonic() + 2 * GRACE_SECONDS
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses to signal a group of zombies
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(EMPTY_POLL_SECONDS)


def _supervise(parent: int, command: Sequence[str]) -> int:
    """Run ``command`` until it ends or is to be stopped; return its exit code once its process group is empty."""
    # A signal before the handlers are set would end the supervisor alone, so signals are blocked until then.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    platform.die_with_parent(parent)
    platform.adopt_orphans()  # to wait for processes that the command leaves behind
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=partial(_prepare_child, os.getpid()))

    def end(number: int, _: object = None) -> None:
        _signal_group(child.pid, number)
        signal.alarm(GRACE_SECONDS)

    for number in _ENDING:
        signal.signal(number, end)
    signal.signal(signal.SIGALRM, lambda *_: _signal_group(child.pid, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)

    pid, status = 0, 0
    while pid != child.pid:
        pid, status = os.waitpid(-1, 0)
    end(signal.SIGTERM)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-child.pid, 0)
    if not platform.LINUX:
        _wait_for_adopted(child.pid)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
