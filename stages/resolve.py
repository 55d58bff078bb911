"""Stage ``resolve``: validate params.yaml and write the inputs of every stage, so that each depends on its own alone.

It prints each key or file that changed since its last run here, and the stages that are out of date. A misspelt key
fails here, before any work.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.orchestration.stage import program
from pipeline.settings import schema
from pipeline.settings.inputs import EXECUTION_FILE, FOLDER, resolved_inputs
from pipeline.settings.layers import without_effect
from pipeline.settings.locks import require_lock_of
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError
from pipeline.utils.provenance import file_at

LAST = Path(".flowtune", "inputs")
"""Copy of the inputs last written, since DVC removes a stage's outputs before it runs the stage."""

SHOWN = 4


def main() -> None:
    settings = schema.load(Path("params.yaml"))
    require_lock_of(Path(), settings.scale)
    require_effect(Path("params.yaml"))
    files = resolved_inputs(settings)
    for path in sorted(path for path in FOLDER.rglob("*.json") if path not in files):
        path.unlink()
    for path, text in files.items():
        write_text(path, text)
    for line in told(files):
        print(line)
    shutil.rmtree(LAST, ignore_errors=True)
    shutil.copytree(FOLDER, LAST)


def require_effect(path: Path) -> None:
    """Check that each key that an experiment sets by ``-S`` has an effect.

    Raises:
        UserError: a key has none; the message names it and the more specific ones that override it.
    """
    baseline = os.environ.get("DVC_EXP_BASELINE_REV")  # DVC sets it for the stages of an experiment
    before = file_at(Path(), baseline, path.name) if baseline else None
    if before is None:
        return
    try:
        idle = without_effect(before, path.read_text(encoding="utf-8"), path.name)
    except UserError:  # the older file has another layout
        return
    if idle:
        raise UserError(idle[0])


def told(files: Mapping[Path, str]) -> Iterator[str]:
    """Yield a line for each key or file that changed, with the stages that are out of date."""
    stages: dict[str, list[str]] = {}
    for path, text in files.items():
        before = LAST / path.relative_to(FOLDER)
        if before.exists() and path.name != EXECUTION_FILE:
            for cause in causes(json.loads(before.read_text(encoding="utf-8")), json.loads(text)):
                stages.setdefault(cause, []).append(path.stem)
    for cause, names in stages.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"{cause}: out of date: {', '.join(names[:SHOWN])}{more}"


def causes(before: Mapping[str, object], after: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yield the differences between two input files: keys with their values, files by their names."""
    for name in {**before, **after}:
        one, other = before.get(name), after.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from causes(one, other, "" if name in ("settings", "code") else f"{prefix}{name}.")
        elif one != other:
            is_file = str(name).endswith(".py")
            yield f"{name} changed" if is_file else f"{prefix}{name}: {_shown(one)} → {_shown(other)}"


def _shown(value: object) -> str:
    return "not there" if value is None else json.dumps(value)


if __name__ == "__main__":
    program(main)
