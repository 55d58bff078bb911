"""The faults: each disturbs a run of a bench, and then removes its cause."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.faults.bench import Bench, Run

GUESS_S = 15.0
"""The assumed duration of a run, before one has been measured."""
WORK = {
    "training": ("pretrain", "finetune", "pretrain_diffusion", "finetune_residual", "pretrain_images"),
    "rollouts": ("evaluate_rollouts", "evaluate_robustness"),
    "tabulating": ("tabulate", "tabulate_images", "report_stability"),
    "dvc": ("pretrain", "pretrain_images", "prepare"),
}
"""Kinds of stages to disturb, by the name of a variant."""
READ_ONLY = {
    "training": ["data", ".flowtune"],
    "rollouts": ["reports/starter/episodes", "reports/starter/robustness"],
    "tabulating": ["reports"],
    "dvc": [".dvc"],
    "everything": ["."],
}


class SkippedError(Exception):
    """This fault cannot be injected on this machine; the message says why."""


@dataclass
class Event:
    """An injected fault.

    Attributes:
        code: the disturbed run's exit code. what: a description of the fault. run: for its output.
        unsaid: whether no error message can be expected, since the driver was killed.
    """

    code: int
    what: str
    run: Run
    unsaid: bool = False


Fault = Callable[[Bench, str, str, random.Random], Event]
"""Disturb a run of a bench by a driver, by a variant of the fault, at a random instant."""


def kill(bench: Bench, driver: str, variant: str, draw: random.Random, *, duration: float = GUESS_S) -> Event:
    """Send a signal at a random instant to the driver, its group or any of its descendants."""
    name, _, whom = variant.partition(" ")
    at = draw.uniform(0, duration)
    run = bench.start(driver)
    began = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        run.process.wait(at)
    if run.code is not None:
        raise EarlierError(time.monotonic() - began)
    number = signal.Signals[name]
    victim, below = run.process.pid, sorted(bench.project.processes())
    if whom == "any" and below:
        victim = draw.choice(below)
    command = bench.project.processes().get(victim, "")
    with suppress(ProcessLookupError):
        os.killpg(victim, number) if whom == "group" else os.kill(victim, number)
    code = run.wait()
    what = f"{name} to {command.partition(' -m ')[2].strip() or 'the driver'} at {at:.1f} s"
    return Event(code, what, run, unsaid=victim == run.process.pid)


class EarlierError(Exception):
    """The run ended before the fault; the argument is its duration in seconds."""


def disk_full(bench: Bench, driver: str, variant: str, draw: random.Random) -> Event:
    """Leave few bytes on the disk; for the variant dvc none, after a stage has started."""
    filler = bench.project.root.parent / "filler"
    left = draw.randint(0, 200_000)
    run: Run | None = None
    try:
        if variant == "dvc":
            run = bench.start(driver, name="../run")
            while run.code is None and "Running stage" not in run.text():
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 8))
            left = 0
            fill(filler, left)
        else:
            fill(filler, left)
            run = bench.start(driver, name="../run")
        return Event(run.wait(), f"{left} bytes left", run)
    finally:
        filler.unlink(missing_ok=True)


def fill(path: Path, left: int) -> None:
    """Write zeros to ``path`` until the disk has ``left`` bytes."""
    with path.open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        with suppress(OSError):
            while True:
                file.write(bytes(512))
        file.truncate(max(0, file.tell() - left))


def read_only(bench: Bench, driver: str, variant: str, draw: random.Random) -> Event:  # noqa: ARG001
    """Mount folders read-only for this run."""
    folders = READ_ONLY[variant]
    for folder in folders:
        (bench.project.root / folder).mkdir(exist_ok=True)
    mounts = [f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}'" for folder in folders]
    run = bench.start(
        driver, wrap=["unshare", "-m", "sh", "-c", f'{" && ".join(mounts)} && cd "$PWD" && exec "$@"', "_"]
    )
    return Event(run.wait(), f"read-only: {', '.join(folders)}", run)


def memory(bench: Bench, driver: str, variant: str, draw: random.Random) -> Event:
    """Limit the address space, which fails allocations, or a control group's memory, which kills."""
    if variant == "address space":
        limit = draw.randint(1500, 4500)
        run = bench.start(driver, wrap=["sh", "-c", f'ulimit -v {limit * 1024} && exec "$@"', "_"])
        return Event(run.wait(), f"{limit} MiB of address space", run)
    limit = draw.randint(250, 700)
    with control_group(limit) as group:
        run = bench.start(driver, wrap=["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "_"])
        code = run.wait()
        bench.orphans()
    return Event(code, f"{limit} MiB in a control group", run, unsaid=code == -signal.SIGKILL)


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """Make a control group with ``limit`` MiB of memory.

    Raises:
        SkippedError: none can be made here.
    """
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    parent, name = (first, "memory.limit_in_bytes") if first.exists() else (second, "memory.max")
    group = parent / f"flowtune-faults-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(limit << 20), encoding="utf-8")
    except OSError as error:
        raise SkippedError(f"no control group can be made: {error}") from None
    try:
        yield group
    finally:
        time.sleep(0.2)
        with suppress(OSError):
            group.rmdir()


def twice(bench: Bench, driver: str, variant: str, draw: random.Random) -> Event:
    """Start a second run, by the driver ``variant``, during the first."""
    first = bench.start(driver, name="first")
    wait = draw.uniform(3, 10)
    time.sleep(wait)
    second = bench.start(variant)
    code = second.wait()
    first.wait()
    return Event(code, f"a second run, by {variant}, after {wait:.1f} s", second)


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
#define BACK (2 * 86400)
int clock_gettime(clockid_t id, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(id, t);
  if (!code && id == CLOCK_REALTIME) t->tv_sec -= BACK;
  return code;
}
int gettimeofday(struct timeval *t, void *zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec;
  t->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
"""
"""A library for LD_PRELOAD that sets a program's clock back by two days."""


def clock(bench: Bench, driver: str, variant: str, draw: random.Random) -> Event:
    """Set the clock back: files from the future, or a run resumed two days before its interruption."""
    if variant == "files of next year":
        for path in bench.project.root.rglob("*"):
            if not path.is_symlink():
                os.utime(path, (time.time() + 365 * 86400,) * 2)
        run = bench.start(driver)
        return Event(run.wait(), variant, run)
    if not shutil.which("cc"):
        raise SkippedError("no C compiler, which builds the library that sets clocks back")
    library = bench.project.root.parent / "back.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-xc", "-", "-o", library, "-ldl"],
        input=SHIM,
        text=True,
        check=True,
        encoding="utf-8",
    )
    before = kill(bench, driver, "SIGKILL", draw)
    bench.orphans()
    run = bench.start(driver, LD_PRELOAD=str(library))
    return Event(run.wait(), f"{before.what}, then two days earlier", run)


def mlflow(bench: Bench, driver: str, variant: str, draw: random.Random) -> Event:
    """Lock, corrupt or remove MLflow's database, before or during the run."""
    database = bench.project.root / ".flowtune" / "mlflow.db"
    shutil.copytree(bench.made.root.parent / "mlflow", database.parent, dirs_exist_ok=True)
    what, _, when = variant.partition(" ")
    run = bench.start(driver, FLOWTUNE_TRACKING="on") if when == "during" else None
    if run:
        time.sleep(draw.uniform(2, 10))
    held = None
    if what == "locked":
        held = sqlite3.connect(database, isolation_level=None)
        held.execute("BEGIN EXCLUSIVE")
    elif what == "corrupt":
        with database.open("r+b") as file:
            file.write(draw.randbytes(100_000))
    else:
        database.unlink(missing_ok=True)
    run = run or bench.start(driver, FLOWTUNE_TRACKING="on")
    code = run.wait()
    if held:
        held.close()
    return Event(code, f"database {variant}", run)


FAULTS: dict[str, Fault] = {
    "kill": kill,
    "interrupt": kill,
    "disk": disk_full,
    "read-only": read_only,
    "memory": memory,
    "twice": twice,
    "clock": clock,
    "mlflow": mlflow,
}
