"""Child processes that never outlive their parent.

Each command runs under a small supervisor (this file as a program): it gives the command a session of its own, is told
by the kernel when the parent dies, however it dies, and then ends the command with everything the command started. Only
the standard library is imported, so that the supervisor starts in milliseconds.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

GRACE_SECONDS = 10  # between SIGTERM and SIGKILL

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 2**25  # the most that every glibc takes for a threshold of mapping


def start(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start ``command`` supervised; its stdout and stderr come line by line from the ``stdout`` pipe.

    Ending the returned process with SIGTERM ends the command's whole process group: SIGTERM, then SIGKILL after
    ``GRACE_SECONDS``. The return code is the command's, or 128 + n if signal n killed it.

    The kernel ties the supervisor to the calling *thread*: call this from one that stays until the command has ended.
    """
    supervisor = [sys.executable, "-I", str(Path(__file__).resolve()), str(os.getpid())]
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


def stop(processes: Iterable[subprocess.Popen[str]]) -> None:
    """End processes made by ``start``, all at once, and wait until they and what they started are gone."""
    processes = list(processes)
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def keep_freed_memory() -> None:
    """Have this process keep what it frees, for its next tensors, where its C library is glibc.

    By itself glibc maps a block of some hundred kilobytes from the kernel and unmaps it when it is freed, and shrinks
    its heap: then each tensor is made of pages that the kernel has to clear first. No result depends on it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def die_with_parent(parent: int, signum: int = signal.SIGTERM) -> None:
    """Ask the kernel to send this process ``signum`` when process ``parent``, which started it, dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # it died before the request reached the kernel
        os.kill(os.getpid(), signum)


def identity(pid: int) -> str:
    """Name a process for ever, as host/boot/pid/start: its pid alone is given out again."""
    path = Path("/proc/sys/kernel/random/boot_id")
    boot = path.read_text(encoding="utf-8")[:8] if path.exists() else ""
    fields = _stat(pid)
    started = fields[19] if fields else "0"
    return f"{socket.gethostname()}/{boot}/{pid}/{started}"


def is_gone(name: str) -> bool:
    """Whether a process named by ``identity`` ran on this host since it booted, and runs no more."""
    *place, pid, _ = name.split("/") if name.count("/") == 3 else ("", "0", "")
    return place == identity(os.getpid()).split("/")[:2] and name != identity(int(pid))


def ancestor(program: str) -> int | None:
    """Pid of the nearest process above this one that runs ``program`` (as a script, or with ``python -m``)."""
    pid = os.getpid()
    while fields := _stat(pid):
        pid = int(fields[1])
        words = _command(pid)
        if program in [Path(word).name for word in words[:2]] or words[1:3] == ["-m", program]:
            return pid
    return None


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the third on; empty where there is no such process, or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def _command(pid: int) -> list[str]:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        return []


def _signal_group(group: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signum)


def _prepare_child(supervisor: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the mask is inherited
    die_with_parent(supervisor)


def _supervise(parent: int, command: Sequence[str]) -> int:
    """Run ``command`` to its end, or end it when told to; return its exit code once its process group is empty."""
    # A SIGTERM before the handlers stand would end the supervisor alone: it waits until they do.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    die_with_parent(parent)
    if sys.platform == "linux":
        # What the command leaves behind becomes our child, not init's: it can be waited for, and leaves no zombie.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=partial(_prepare_child, os.getpid()))

    def end(*_: object) -> None:
        _signal_group(child.pid, signal.SIGTERM)
        signal.alarm(GRACE_SECONDS)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, lambda *_: _signal_group(child.pid, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    pid, status = 0, 0
    while pid != child.pid:
        pid, status = os.waitpid(-1, 0)
    end()
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-child.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_supervise(int(sys.argv[1]), sys.argv[2:]))
