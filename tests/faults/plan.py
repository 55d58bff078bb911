"""The plan of a fault campaign, and the execution of one trial."""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

from pipeline.utils.provenance import git_commit
from tests.faults.bench import DRIVERS, Bench, make_bench, window
from tests.faults.kinds import FAULTS, GUESS_S, WORK, EarlierError, Event, SkippedError, kill
from tests.project import ROOT, Project

DISK_MIB = 48
KINDS: dict[str, tuple[tuple[str, ...], int]] = {
    "kill": (("SIGKILL driver", "SIGKILL driver", "SIGKILL any"), 54),
    "interrupt": (("SIGINT group", "SIGTERM driver"), 12),
    "disk": (("training", "rollouts", "tabulating", "dvc"), 8),
    "read-only": (("training", "rollouts", "tabulating", "dvc", "everything"), 10),
    "memory": (("address space", "control group"), 6),
    "twice": (tuple(DRIVERS), 6),
    "clock": (("files of next year", "interrupted, then two days earlier"), 4),
    "mlflow": (("locked", "corrupt", "removed", "locked during", "corrupt during", "removed during"), 9),
}
"""Kind of fault → its variants, and the number of its trials."""


@dataclass(frozen=True)
class Trial:
    """A planned trial.

    Attributes:
        number: among the trials of its kind.
    """

    kind: str
    variant: str
    driver: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.number}"


@dataclass(frozen=True)
class Row:
    """The result of a trial.

    Attributes:
        stages: to be made. what: the fault. exit, said: the disturbed run's exit code and error message.
        orphans: processes that outlived the run. damaged: committed files that were lost or truncated.
        again: the exit code of the same command again. different: files that then differ from an undisturbed run's.
        verdict: ``survived``, ``skipped: why``, or the failures.
    """

    kind: str
    number: int
    variant: str
    driver: str
    stages: str
    what: str = ""
    exit: int = 0
    said: str = ""
    orphans: str = ""
    damaged: str = ""
    again: int = 0
    different: str = ""
    seconds: float = 0.0
    verdict: str = ""
    commit: str = ""


def trials(kinds: Mapping[str, int]) -> list[Trial]:
    """Return so many trials of each kind, with its variants and the drivers in turn."""
    made = []
    for kind, count in kinds.items():
        variants = KINDS[kind][0]
        turns = range(len(variants))  # shifted for each driver, so that few trials cover many variants
        pairs = [(variants[(at + by) % len(variants)], driver) for at in turns for by, driver in enumerate(DRIVERS)]
        pairs = list(islice(cycle(pairs), count))
        made += [Trial(kind, variant, driver, number) for number, (variant, driver) in enumerate(pairs)]
    return made


def try_it(trial: Trial, made: Project, work: Path, seed: int, env: Mapping[str, str]) -> Row:
    """Disturb a run, check its remains, and run the same command again."""
    draw = random.Random(f"{seed} {trial.kind} {trial.number}")
    stages = window(made, draw, WORK.get(trial.variant, ()))
    row = asdict(Row(trial.kind, trial.number, trial.variant, trial.driver, " ".join(stages)))
    began = time.monotonic()
    try:
        with place_for(trial, work) as root:
            bench = make_bench(made, root, stages, dict(env))
            row |= judged(*disturbed(bench, trial, draw, seed), trial)
    except SkippedError as error:
        row["verdict"] = f"skipped: {error}"
    except EarlierError:
        row["verdict"] = "skipped: the run ended before the fault came"
    return Row(**row | {"seconds": round(time.monotonic() - began, 1), "commit": git_commit(ROOT)[:12]})


def disturbed(bench: Bench, trial: Trial, draw: random.Random, seed: int) -> tuple[Bench, Event]:
    """Return the bench after its fault; if the run ended before the fault, try again with an earlier instant."""
    if FAULTS[trial.kind] is not kill:
        return bench, FAULTS[trial.kind](bench, trial.driver, trial.variant, draw)
    duration = GUESS_S
    for attempt in range(5):
        try:
            again = random.Random(f"{seed} {trial.name} {attempt}")
            return bench, kill(bench, trial.driver, trial.variant, again, duration=duration)
        except EarlierError as early:
            duration = early.args[0]
            bench = make_bench(bench.made, bench.project.root, bench.stages, bench.env)
    raise SkippedError("the run ended before the fault came, five times")


def judged(bench: Bench, event: Event, trial: Trial) -> dict[str, object]:
    """Return the columns of a row about the effects of a fault."""
    orphans, damaged = bench.orphans(), bench.damaged()
    left = {
        "what": shortened(event.what, bench),
        "exit": event.code,
        "said": shortened(event.run.said(), bench),
        "orphans": len(orphans),
    }
    wrong = [f"{len(orphans)} orphans"] * bool(orphans) + [f"damaged {len(damaged)} files"] * bool(damaged)
    if event.code and not event.unsaid:
        wrong += ["said nothing"] * (not event.run.said())
        wrong += ["a traceback"] * ("Traceback (most recent" in event.run.text())
    run = bench.start(trial.driver, name="again")
    again = run.wait()
    orphans = bench.orphans()
    different = bench.different()
    wrong += [f"again exit {again}"] * bool(again) + [f"{len(different)} files differ"] * bool(different)
    wrong += ["orphans of the second run"] * bool(orphans)
    left |= {"damaged": " ".join(damaged), "again": again, "different": " ".join(different)}
    return left | {"orphans": " | ".join(orphans), "verdict": "; ".join(wrong) or "survived"}


def shortened(line: str, bench: Bench) -> str:
    """Return a line without the folders of the project and of its environment."""
    for folder in (bench.project.root, Path(sys.prefix).parent):
        line = line.replace(f"{folder}/", "").replace(str(folder), ".")
    return line[:200]


@contextmanager
def place_for(trial: Trial, work: Path) -> Iterator[Path]:
    """Yield the folder for a trial's project; for disk faults it is on a small file system of its own.

    Raises:
        SkippedError: this program may not mount file systems.
    """
    mounts = trial.kind in ("disk", "read-only")
    disk = work / "disk"
    with suppress(subprocess.CalledProcessError, FileNotFoundError):
        subprocess.run(["umount", "-l", disk], check=True, capture_output=True)  # left by a killed campaign
    if mounts and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        raise SkippedError("only root may mount file systems")
    if trial.kind != "disk":
        yield work / "project"
        return
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", disk], check=True)
    try:
        yield disk / "project"
    finally:
        subprocess.run(["umount", "-l", disk], check=False)
        shutil.rmtree(disk, ignore_errors=True)
