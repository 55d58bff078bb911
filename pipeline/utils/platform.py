"""Make the system calls that differ between Linux and other systems, each with a plain fallback.

On Linux the kernel ends children with their parent, hands orphans to a supervisor and says when a process started.
Elsewhere (macOS) a polling thread and psutil do this later or in part; each docstring says how. Importing this module
imports only the standard library, so that small programs start in milliseconds.
"""

import ctypes
import fcntl
import os
import platform
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

LINUX = sys.platform == "linux"

FORK_IS_SAFE = LINUX
"""True if a process that has imported many libraries may be forked. On macOS, system libraries start threads and do not
work in a forked process; there a new Python is started instead."""

PARENT_POLL_SECONDS = 0.5
STARTER = "FLOWTUNE_STARTER"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 2**25  # the largest mmap threshold that every glibc accepts


def cpus() -> int:
    """Count the CPUs that this process may run on; if the system does not tell, those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Name the processor's model; if the system does not tell, its architecture."""
    found = re.search(r"^model name\s*: (.+)$", _proc("cpuinfo"), re.MULTILINE)
    if found:
        return " ".join(found[1].split())
    if sys.platform == "darwin":
        with suppress(OSError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            told = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False).stdout.strip()
            if told:
                return told
    return platform.processor() or platform.machine()


def die_with_parent(parent: int, signum: int = signal.SIGTERM) -> None:
    """Arrange that this process receives ``signum`` when its parent process ``parent`` dies.

    On Linux the kernel sends it at once, also after an ``exec``. Elsewhere a thread checks every
    ``PARENT_POLL_SECONDS``. That thread ends with an ``exec``, and cannot check while other code holds Python's lock.
    """
    if LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)
    else:
        threading.Thread(target=_watch, args=(parent, signum), name="parent", daemon=True).start()
    if os.getppid() != parent:  # it died before the request
        os.kill(os.getpid(), signum)


def die_with_starter() -> None:
    """Arrange that this process is killed when its starter dies; the variable ``STARTER`` holds the starter's pid.

    The variable is removed, so that programs that this one starts do not find it.
    """
    if starter := os.environ.pop(STARTER, None):
        die_with_parent(int(starter), signal.SIGKILL)


def _watch(parent: int, signum: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # signals must go to the main thread
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signum)


def wait_for_end(pid: int) -> None:
    """Wait until process ``pid`` has ended; it need not be a child of this one."""
    if LINUX:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            select.select([handle], [], [])
            os.close(handle)
        return
    with suppress(OSError):
        while True:
            os.kill(pid, 0)
            time.sleep(PARENT_POLL_SECONDS)


def adopt_orphans() -> None:
    """Adopt descendants that lose their parent. This works only on Linux; elsewhere init adopts them."""
    if LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def keep_freed_memory() -> None:
    """Keep freed memory in this process for its next tensors, if its C library is glibc.

    By default glibc maps a block of some hundred kilobytes from the kernel, unmaps it when it is freed, and shrinks its
    heap. The kernel must then clear the pages of every new tensor. No result depends on this.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def name_process(name: str) -> None:
    """Set the name that ``top`` shows for this process. Only on Linux; elsewhere it keeps its program's name."""
    if LINUX:
        with suppress(OSError):
            Path("/proc/self/comm").write_text(name, encoding="utf-8")


def boot_id() -> str:
    """Return an identifier of this boot of the machine; empty if the system does not tell."""
    return _proc("sys/kernel/random/boot_id")[:8]


def started(pid: int) -> str:
    """Return when process ``pid`` started, in ticks since boot or milliseconds since 1970; ``0``: no such process."""
    if LINUX:
        fields = _proc(f"{pid}/stat").rpartition(")")[2].split()
        return fields[19] if fields else "0"
    import psutil

    try:
        return str(round(1000 * psutil.Process(pid).create_time()))
    except psutil.Error:
        return "0"


def is_at_work(pid: int) -> bool:
    """Tell whether process ``pid`` runs; a zombie, which has ended but was not waited for, does not."""
    if LINUX:
        return _proc(f"{pid}/stat").rpartition(")")[2].split()[:1] not in ([], ["Z"], ["X"])
    import psutil

    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes since it began, or since ``forget_peak_memory``."""
    if found := re.search(r"^VmHWM:\s+(\d+) kB$", _proc("self/status"), re.MULTILINE):
        return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak_memory() -> None:
    """Reset ``peak_memory``.

    Raises:
        OSError: the system cannot do that; only Linux can.
    """
    if not LINUX:
        raise OSError("the peak of a process's memory is forgotten on Linux alone")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def lock(file: IO[Any], *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file until it is closed, for this process alone or ``shared``.

    Raises:
        BlockingIOError: another process has the lock, and ``wait`` is false.
    """
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Yield an address for the socket ``path``; the path itself may be longer than the 107 bytes allowed."""
    if not LINUX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _proc(name: str) -> str:
    """Read a file of /proc; empty if it does not exist."""
    if not LINUX:
        return ""
    try:
        return Path("/proc", name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
