"""Which files of this project a program runs: what a DVC stage declares and a resumed run must find unchanged."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_PLUMBING = (
    "atomic",
    "blocks",
    "closure",
    "complaints",
    "config",
    "errors",
    "image_settings",
    "layout",
    "lockguard",
    "processes",
    "provenance",
    "robot_settings",
    "run",
    "spool",
    "stage",
    "tracking",
    "utils/environment",
    "utils/hardware",
    "utils/memory",
    "utils/platform",
)
PLUMBING = frozenset(f"pipeline/{name}.py" for name in _PLUMBING)
"""Files that carry settings in, and logs and files out, but compute nothing: editing one changes no result, and must
not re-run hours of training. The settings' values are tracked by DVC themselves."""


def code_of(program: str) -> list[str]:
    """Files that decide what ``program`` computes, itself included, relative to the root and sorted.

    Follows every import of the project's own packages, those inside functions too; ``PLUMBING`` and empty
    ``__init__.py`` files are left out.

    Args:
        program: a file, relative to the root, such as ``stages/pretrain.py``.
    """
    found: set[str] = set()
    waiting = [program]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        waiting += [other for other in imports_of(file) if other not in PLUMBING]
    return sorted(found)


def imports_of(file: str) -> set[str]:
    """The project's own files that ``file`` imports directly, relative to the root."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    paths = {name.replace(".", "/") + ".py" for name in names if name.split(".")[0] in ("pipeline", "stages")}
    return {path for path in paths if (ROOT / path).is_file()}


if __name__ == "__main__":  # python -m pipeline.closure stages/pretrain.py: the lines for dvc.yaml
    print("\n".join(f"      - {file}" for file in code_of(sys.argv[1])))
