"""What ``make repro`` runs: check params.yaml, let DVC run what is out of date, report what is there if it fails."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipeline import config
from pipeline.atomic import make_folder
from pipeline.errors import UserError
from pipeline.processes import die_with_parent, identity
from pipeline.scale import set_scale
from pipeline.tracking import project_root, recorder

ROOT = Path(__file__).resolve().parent.parent

STUDY = ("lab", "pusht")
"""Scale and task of the coupling study."""
STUDY_PIPELINE = "stages/study/dvc.yaml"


@contextmanager
def repro_lock(root: Path) -> Iterator[None]:
    """Keep every other run of the whole pipeline, by make or by Prefect, out of this folder.

    Raises:
        UserError: one is at work; the message gives its process.
    """
    path = root / ".flowtune" / "repro.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{path}: process {file.read() or '?'} runs the pipeline here; wait or stop it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def checked_settings(root: Path) -> config.Settings:
    """What must hold before DVC starts, and the settings it starts with.

    Raises:
        UserError: params.yaml is wrong, or a file stands where the reports belong.
    """
    settings = config.load(root / "params.yaml")
    make_folder(root / "reports" / settings.scale)  # a file in its place would make DVC stumble
    return settings


def repro(scale: str | None) -> int:
    """Bring every stage of ``scale`` (None: the current one) up to date; returns the exit code.

    Raises:
        UserError: params.yaml is wrong, a file stands where the reports belong, or another run is going on.
    """
    if scale:
        set_scale(ROOT / "params.yaml", scale)
    settings = checked_settings(ROOT)
    with repro_lock(ROOT):
        code = _run("dvc", "repro", "--keep-going")
        if code:
            # A failed stage stops only what needs it; the tables are made of the rest and say what is missing.
            _run("stages.tabulate", "--scale", settings.scale, "--partial")
            _run("stages.report_stability", "--scale", settings.scale, "--partial")
            _run("stages.draw", "--scale", settings.scale)
    return code


def study() -> int:
    """Bring the coupling study up to date, at its scale, which becomes the current one; raises as ``repro``."""
    scale, task = STUDY
    set_scale(ROOT / "params.yaml", scale)
    checked_settings(ROOT)
    with repro_lock(ROOT):
        code = _run("dvc", "repro", "--keep-going", STUDY_PIPELINE)
        if code:  # made of the cells that are there
            _run("stages.study_table", "--scale", scale, "--task", task)
    return code


def _run(module: str, *arguments: str) -> int:
    """Run a module as a program of this Python, which is first in the path of what DVC starts too.

    It dies with this process, which records what it runs: MLflow, slow to import, is not imported by each stage anew,
    and shows all stages of this repro under one parent.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    run = os.environ.get("FLOWTUNE_RUN") or identity(os.getpid())
    with recorder(project_root()) as variables:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, "PATH": path, "FLOWTUNE_RUN": run, **variables},
            preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGKILL),
            check=False,
        ).returncode


def main() -> int:
    """``python -m pipeline.repro [SCALE]``, or ``--study`` for the coupling study."""
    argument = sys.argv[1] if len(sys.argv) > 1 else None
    try:
        return study() if argument == "--study" else repro(argument)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the stage at work got it too, and keeps what it has
        return 130


if __name__ == "__main__":
    sys.exit(main())
