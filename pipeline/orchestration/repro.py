"""Run ``make repro``: check params.yaml, let DVC run stale stages, and make partial tables if stages fail."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.orchestration import executor, lockguard
from pipeline.orchestration.partial import make_partial, remove_partial
from pipeline.orchestration.restore import put_back
from pipeline.settings import schema
from pipeline.settings.inputs import outdated_outside
from pipeline.settings.locks import lock_files
from pipeline.settings.scale import set_scale
from pipeline.tracking.store import drain
from pipeline.utils.atomic import make_folder, remove_leftovers
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import cores, gpus
from pipeline.utils.platform import STARTER, lock
from pipeline.utils.processes import identity

ROOT = Path(__file__).resolve().parents[2]

STUDY_SCALE = "lab"
"""Default scale of studies."""


@contextmanager
def repro_lock(root: Path) -> Iterator[None]:
    """Keep other runs of the whole pipeline, by make or by Prefect, out of this folder.

    Raises:
        UserError: one is active; the message gives its process.
    """
    path = root / ".flowtune" / "repro.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            lock(file)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{path}: process {file.read() or '?'} runs the pipeline; wait for it or stop it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        for path in (root / "params.yaml", *lock_files(root)):
            remove_leftovers(path)
        yield


def checked_settings(root: Path) -> schema.Settings:
    """Repair the folder for DVC and return the checked settings.

    Raises:
        UserError: params.yaml is wrong, a file stands where the reports belong, or ``resolve`` failed.
    """
    settings = schema.load(root / "params.yaml")
    for mended in lockguard.mend(root):
        what = "was truncated when DVC was killed; its entries are restored"
        print(f"{mended.relative_to(root)}: {what}", file=sys.stderr)
    put_back(root)
    make_folder(root / "reports" / settings.scale)  # DVC fails if a file has this name
    if changed := outdated_outside(settings, root):
        print(f"{', '.join(changed)} changed; the input files of stages are made again")
        _resolve_anew(root)
    return settings


def _resolve_anew(root: Path) -> None:
    """Run ``resolve`` even if DVC considers it up to date; raise a ``UserError`` if it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "dvc", "repro", "--quiet", "--force", "--single-item", "resolve"]
    if subprocess.run(command, cwd=root, env=os.environ | {"PATH": path}, check=False).returncode:
        raise UserError("resolve failed; see above")


def repro(scale: str | None, jobs: int | None) -> int:
    """Bring every stage of ``scale`` up to date, at most ``jobs`` at a time; return the exit code.

    None stands for the current scale and for ``fitting_jobs``.

    Raises:
        UserError: params.yaml is wrong, a file stands where the reports belong, or another run is going on.
        KeyboardInterrupt: SIGINT came; all started processes have ended.
    """
    with repro_lock(ROOT):
        if scale:
            set_scale(ROOT / "params.yaml", scale)
        settings = checked_settings(ROOT)
        return _bring_up_to_date("dvc.yaml", lambda: jobs or fitting_jobs(settings), settings.scale, "partial")


def study(scale: str = STUDY_SCALE, jobs: int | None = None) -> int:
    """Bring the studies of ``scale`` up to date, ``jobs`` cells (None: one) at a time; return the exit code.

    ``scale`` becomes the current one. Raises as ``repro``; a ``UserError`` also if the scale has no studies.
    """
    pipeline = study_pipeline(scale, ROOT)
    with repro_lock(ROOT):
        set_scale(ROOT / "params.yaml", scale)
        checked_settings(ROOT)
        return _bring_up_to_date(pipeline.as_posix(), lambda: jobs or 1, scale, "partial_study")


def study_pipeline(scale: str, root: Path) -> Path:
    """Return the studies' pipeline file of ``scale``, relative to ``root``; raise a ``UserError`` if it has none."""
    pipeline = Path("reports", scale, "study", "dvc.yaml")
    if not (root / pipeline).exists():
        have = ", ".join(sorted(path.parts[-3] for path in root.glob("reports/*/study/dvc.yaml")))
        raise UserError(f"scale: given {scale!r}, allowed for a study: {have}")
    return pipeline


def _bring_up_to_date(file: str, jobs: Callable[[], int], scale: str, partial_folder: str) -> int:
    """Bring the pipeline ``file`` up to date; return the exit code.

    A failed stage blocks only the stages that need it; ``partial_folder`` gets tables of the rest.
    """
    unmade = ROOT / ".flowtune" / "unmade.json"
    unmade.unlink(missing_ok=True)
    os.chdir(ROOT)
    # DVC's commands must find this Python first. MLflow shows their runs under one parent, FLOWTUNE_RUN.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("FLOWTUNE_RUN", identity(os.getpid()))
    try:
        code = executor.bring_up_to_date(file, jobs, unmade)
        if code == 0:
            remove_partial(ROOT, scale, partial_folder)
        elif unmade.exists():
            make_partial(ROOT, scale, partial_folder, unmade, _run)
    finally:
        drain()
    return code


def fitting_jobs(settings: schema.Settings) -> int:
    """Return how many stages fit on this machine's cores by their threads; 1 if they share a GPU."""
    if gpus():
        return 1
    block = settings.block(settings.scale)
    tasks = [block.task(name) for name in settings.tasks] + [block.image_task(name) for name in settings.images]
    return max(1, cores() // max(task.threads * task.processes for task in tasks))


def _run(module: list[str], folder: Path) -> None:
    """Run a module of this project with its arguments in ``folder``; SIGINT and this process's death end it too."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), STARTER: str(os.getpid())}
    with subprocess.Popen([sys.executable, "-m", *module], cwd=folder, env=env) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # Ctrl-C in a terminal reaches both, `kill` does not
            raise


def _jobs(given: str | None) -> int | None:
    """Parse the number of stages at a time (None if not given); raise a ``UserError`` if it is not positive."""
    if given is None:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"--jobs: given {given!r}, allowed: a whole number, at least 1")
    return int(given)


def main() -> int:
    """Run the command line: ``[--jobs N] [SCALE]``, ``--study`` for studies; return the exit code."""
    parser = argparse.ArgumentParser(prog="pipeline.orchestration.repro")
    parser.add_argument("scale", nargs="?", help="starter, lab, paper or metaworld; default: the one in params.yaml")
    parser.add_argument("--jobs", help="stages at a time; default: as many as fit the cores")
    parser.add_argument("--study", action="store_true", help="run the studies of the scale (default: lab) instead")
    arguments = parser.parse_args()
    try:
        jobs = _jobs(arguments.jobs)
        return study(arguments.scale or STUDY_SCALE, jobs) if arguments.study else repro(arguments.scale, jobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk or a read-only folder
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # running stages got it too and keep their resumable state
        return 130


if __name__ == "__main__":
    sys.exit(main())
