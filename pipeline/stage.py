"""What every stage program shares: errors in one line, a run in MLflow, and a locked folder to resume from."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline import lockguard
from pipeline.atomic import make_folder, remove_leftovers
from pipeline.closure import ROOT, code_of
from pipeline.errors import UserError
from pipeline.processes import ancestor, keep_freed_memory
from pipeline.provenance import hash_files
from pipeline.run import Run
from pipeline.tracking import stage_run


@dataclass(frozen=True)
class Stage:
    """A stage at work.

    Attributes:
        main: whether this is the process that writes results; the only one, or the first of several.
        run: its run in MLflow.
        resume: a folder of its own for resumable state; the same one after a kill, as long as settings, inputs and code
            are the same, and removed when the stage succeeds.
    """

    main: bool
    run: Run
    resume: Path


@contextmanager
def stage(
    program: str, label: str, *, params: Mapping[str, object], deps: Sequence[Path], outs: Sequence[Path]
) -> Iterator[Stage]:
    """Run the body as the stage ``label`` of ``program``, such as ``stages/pretrain.py``.

    Args:
        params: every setting that its result depends on.
        deps, outs: files and folders read and written.

    Raises:
        UserError: an input is missing, or another process is running the same stage.
    """
    for path in deps:
        if not path.exists():
            raise UserError(f"{path}: not found; it is made by an earlier stage, run `dvc repro`")
    for path in outs:
        make_folder(path.parent)
    data = hash_files(deps)
    folder = ROOT / ".flowtune" / "resume" / f"{label}-{_resume_key(program, params, data)}"
    if int(os.environ.get("RANK", "0")) > 0:  # torchrun's: another process has the lock and keeps the records
        yield Stage(False, Run(), folder)
        return
    with _locked(folder):
        for path in outs:
            remove_leftovers(path)
        if dvc := ancestor("dvc"):
            lockguard.guard(ROOT, dvc)
        with stage_run(label, params=params, tags={"hash.data": data}) as run:
            yield Stage(True, run, folder)
            run.tag("hash.outputs", hash_files([path for path in outs if path.exists()]))
        shutil.rmtree(folder)


def in_processes(count: int, program: str) -> None:
    """Go on as ``count`` data-parallel processes (torchrun), each running ``program`` with the same arguments.

    A no-op for one, and in the processes that it starts.

    Args:
        program: such as ``stages/pretrain.py``.
    """
    if "RANK" in os.environ:
        _take_device()
        return
    if count == 1:
        return
    module = program.removesuffix(".py").replace("/", ".")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--module", module]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv[1:]])


def _take_device() -> None:
    """Use the GPU of this process, one of several, from the first tensor on."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def program(main: Callable[[], None]) -> None:
    """Run ``main`` as a program: a ``UserError`` becomes one line on stderr and exit code 2."""
    keep_freed_memory()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (FloatingPointError, OSError) as error:  # diverged; a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _resume_key(program: str, params: Mapping[str, object], data: str) -> str:
    code = hash_files([ROOT / file for file in code_of(program)])
    text = json.dumps([params, data, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    make_folder(folder)
    lock = folder.with_name(folder.name + ".lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{lock}: another process is running this stage; wait for it, or stop it") from None
        yield
