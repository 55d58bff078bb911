"""Count the cores, the memory and the GPUs that this process really has.

Control groups (cgroups v2 and v1) set the limits of a container. The CPU affinity and the number of CPUs do not show
these limits.
"""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import psutil

from pipeline.utils import platform

ROOT = Path("/")


def cores(root: Path = ROOT) -> int:
    """Count usable cores: those of the CPU affinity, at most the rounded CPU quota of any control group; at least 1.

    Args:
        root: the folder that holds ``proc`` and the file systems of the control groups.
    """
    quotas = [quota for group in _groups(root, "cpu") if (quota := _quota(group)) is not None]
    return max(1, min([platform.cpus(), *(int(quota + 0.5) for quota in quotas)]))


def free_memory(root: Path = ROOT) -> int:
    """Return the bytes that this process and its children may still take; reclaimable page cache counts as free.

    Args:
        root: see ``cores``.
    """
    rooms = [room for group in _groups(root, "memory") if (room := _room(group)) is not None]
    return max(0, min([psutil.virtual_memory().available, *rooms]))


@cache
def gpus() -> int:
    """Count the GPUs that PyTorch sees. Another process asks PyTorch: this one neither imports it nor starts CUDA.

    0, without asking, if the driver's library cannot be loaded.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    asked = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    return int(asked.stdout) if asked.returncode == 0 else 0


def fitting_workers(wanted: int) -> int:
    """Limit the ``wanted`` number of processes to the number of cores."""
    return min(wanted, cores())


def use_threads(wanted: int) -> None:
    """Let PyTorch and the linear algebra of NumPy and SciPy use ``wanted`` threads, at most one per core.

    More threads than cores wait for each other: two on one core can be tens of times slower than one. Data-parallel
    processes of this machine share its cores. Fewer threads than ``wanted`` change the last bits of results; then a
    warning is printed.
    """
    import torch
    from threadpoolctl import threadpool_limits

    available = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = max(1, min(wanted, available))
    if threads < wanted and os.environ.get("RANK", "0") == "0":
        print(
            f"threads: given {wanted}, {threads} used, as this machine has no more cores for it; last bits of results "
            "may differ",
            file=sys.stderr,
        )
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups for ``controller``, each followed by its mounted parents."""
    paths: dict[str, str] = {}
    for names, path in re.findall(r"^\d+:(.*?):(/.*)$", _read(root / "proc/self/cgroup"), re.MULTILINE):
        paths |= dict.fromkeys(names.split(","), path)  # in version 2 the name is empty
    for found in re.finditer(_MOUNT, _read(root / "proc/self/mountinfo"), re.MULTILINE):
        top, place, version, options = found.groups()
        name = "" if version == "2" else controller
        if name not in paths or (name and name not in options.split(",")):
            continue
        base = root / place.lstrip("/")
        below = Path(paths[name]).relative_to(top) if Path(paths[name]).is_relative_to(top) else Path()
        if ".." in below.parts:  # this process's group lies outside its namespace
            below = Path()
        yield from (base / folder for folder in (below, *below.parents))


_MOUNT = r"^\S+ \S+ \S+ (\S+) (\S+) .* - cgroup(2?) .*?(\S+)$"
"""A line of mountinfo: the mounted folder, its mount point, the version of control groups, and the options."""


def _quota(group: Path) -> float | None:
    """Return the CPU time that a control group gets, in cores; None: no limit."""
    version_1 = " ".join(_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    quota, period = [*(_read(group / "cpu.max") or version_1).split(), "", ""][:2]
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _room(group: Path) -> int | None:
    """Return the bytes that a control group may still take; None: no limit."""
    for limits, usage, cache_name in _MEMORY_FILES:
        given = [int(text) for name in limits if (text := _read(group / name).strip()).isdecimal()]
        used = _read(group / usage).strip()
        if given and used.isdecimal():
            fields = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines())
            return min(given) - int(used) + int(fields.get(cache_name, 0))
    return None


_MEMORY_FILES = (
    (("memory.max", "memory.high"), "memory.current", "inactive_file"),
    (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
)
"""For versions 2 and 1: limits, usage, and the line of memory.stat for the page cache that is freed first."""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
