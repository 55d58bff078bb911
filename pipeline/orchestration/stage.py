"""Common parts of all stage programs: one-line errors, an MLflow run, and a locked folder for resumable state."""

import hashlib
import json
import os
import shlex
import shutil
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.orchestration.restore import kept_reports
from pipeline.settings.blocks import Block
from pipeline.settings.inputs import Inputs
from pipeline.tracking.files import data_sets, is_model, model_digests, models
from pipeline.tracking.run import Run
from pipeline.tracking.store import stage_run
from pipeline.utils import platform
from pipeline.utils.atomic import make_folder, remove_leftovers
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError
from pipeline.utils.memory import peak_of_this_process
from pipeline.utils.precision import begun_with, native
from pipeline.utils.provenance import file_digests, hash_of

PEAK_METRIC = "system/peak_memory_mb"
Settings = TypeVar("Settings", bound=Block)


@dataclass(frozen=True)
class Stage:
    """Running stage.

    Attributes:
        main: whether this process writes the results: the only one, or the first of several.
        run: its MLflow run.
        resume: its folder for resumable state. A restart with the same settings, inputs and code finds it again; the
            stage's success removes it.
    """

    main: bool
    run: Run
    resume: Path

    def settled(self, settings: Settings) -> Settings:
        """Return ``settings`` with ``precision: auto`` replaced by this machine's, or that of a resumed run's start."""
        return settings.with_auto(begun_with(self.resume / "precision", native()))


@contextmanager
def stage(
    inputs: Inputs, label: str, *, deps: Sequence[Path], outs: Sequence[Path], also: Mapping[str, object] | None = None
) -> Iterator[Stage]:
    """Run the body as the stage ``label``.

    Args:
        inputs: the settings that it may read; its result depends on all of them.
        deps, outs: files and folders read and written.
        also: program arguments that its result depends on.

    Raises:
        UserError: an input is missing, or another process is running the same stage.
    """
    for path in deps:
        if not path.exists():
            raise UserError(f"{path}: not found; it is made by an earlier stage, run `dvc repro`")
    for path in outs:
        make_folder(path.parent)
    read = {path: file_digests([path]) for path in deps}
    data = hash_of(dict(ChainMap(*read.values())))
    key = _resume_key(inputs, also or {}, data)
    folder = ROOT / ".flowtune" / "resume" / f"{label}-{key}"
    if int(os.environ.get("RANK", "0")) > 0:  # torchrun: process 0 holds the lock and logs
        yield Stage(False, Run(), folder)
        return
    with _locked(folder):
        for path in outs:
            remove_leftovers(path)
        tags = {"hash.data": data, "command": _command(inputs.program), "mlflow.source.name": inputs.program}
        params = inputs.shown | dict(also or {})
        with kept_reports(ROOT, label, outs), stage_run(label, params=params, tags=tags) as run:
            run.read(data_sets(read, _data_set(inputs)), model_digests(read), measured=not any(map(is_model, outs)))
            with _peak_logged(run):
                yield Stage(True, run, folder)
            written = file_digests([path for path in outs if path.exists()])
            run.tag("hash.outputs", hash_of(written))
            run.wrote(models(written))
        shutil.rmtree(folder)


def in_processes(count: int, program: str) -> None:
    """Restart ``program``, such as ``stages/pretrain.py``, as ``count`` data-parallel processes (torchrun).

    A no-op for one, and in processes that torchrun has started here or on several machines.

    Raises:
        UserError: torchrun started another number.
    """
    if "RANK" in os.environ:
        if (world := int(os.environ["WORLD_SIZE"])) != count:
            raise UserError(f"processes: given {count}, allowed: {world}, as many as torchrun started in all")
        _take_device()
        return
    if count == 1:
        return
    module = program.removesuffix(".py").replace("/", ".")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--module", module]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv[1:]])


def _take_device() -> None:
    """Select the GPU of this process, one of several, for all its tensors."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def program(main: Callable[[], None]) -> None:
    """Run ``main`` as a program: a ``UserError`` becomes one line on stderr and exit code 2."""
    platform.keep_freed_memory()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (FloatingPointError, OSError) as error:  # diverged; a full disk or a read-only folder
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _command(program: str) -> str:
    """Return the shell command that runs ``program`` with the current arguments."""
    return shlex.join(["python", "-m", program.removesuffix(".py").replace("/", "."), *sys.argv[1:]])


def _data_set(inputs: Inputs) -> str:
    """Return the data set in params.yaml of a stage of one task; empty for other stages."""
    data = inputs.shown.get("data")
    return str(data.get("dataset", "")) if isinstance(data, Mapping) else ""


@contextmanager
def _peak_logged(run: Run) -> Iterator[None]:
    """Log the peak memory of the body as a system metric, even if the body fails."""
    with peak_of_this_process() as peak:
        try:
            yield
        finally:
            run.log({PEAK_METRIC: peak.total / 1e6})


def _resume_key(inputs: Inputs, also: Mapping[str, object], data: str) -> str:
    """Return a hash of everything that the result depends on, including the current code."""
    text = json.dumps([inputs.params, also, data, inputs.code], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    make_folder(folder)
    lock = folder.with_name(folder.name + ".lock")
    with lock.open("w", encoding="utf-8") as file:
        try:
            platform.lock(file)
        except BlockingIOError:
            raise UserError(f"{lock}: another process is running this stage; wait for it, or stop it") from None
        yield
