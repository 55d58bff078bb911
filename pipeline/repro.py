"""What ``make repro`` runs: check params.yaml, let DVC run what is out of date, report what is there if it fails."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import config
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


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


def repro(scale: str | None) -> int:
    """Bring every stage of ``scale`` (None: the current one) up to date; returns the exit code.

    Raises:
        UserError: params.yaml is wrong, or another run is going on.
    """
    params = ROOT / "params.yaml"
    if scale:
        config.set_scale(params, scale)
    settings = config.load(params)
    with repro_lock(ROOT):
        code = subprocess.run([sys.executable, "-m", "dvc", "repro", "--keep-going"], cwd=ROOT, check=False).returncode
        if code:
            # A failed stage stops only what needs it; the tables are made of the rest and say what is missing.
            for stage in (["tabulate", "--partial"], ["draw"]):
                command = [sys.executable, "-m", f"stages.{stage[0]}", "--scale", settings.scale, *stage[1:]]
                subprocess.run(command, cwd=ROOT, check=False)
    return code


def main() -> int:
    """``python -m pipeline.repro [SCALE]``."""
    try:
        return repro(sys.argv[1] if len(sys.argv) > 1 else None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
