"""Find the project's files that a program imports, and digest their syntax trees.

``resolve`` writes these digests into the inputs of every stage: a stage is out of date only when its own code changed.
Comments, docstrings and the layout of lines change no digest.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PLUMBING = (
    *("pipeline/settings/", "pipeline/tracking/", "pipeline/orchestration/", "pipeline/utils/"),
    "pipeline/tasks/loader.py",
)
"""Code that computes nothing: it carries settings in, and logs and files out. Editing it changes no result and must not
re-run hours of training. The inputs of each stage hold the values of the settings themselves."""

COMPUTING = ("pipeline/utils/seeding.py", "pipeline/utils/precision.py")
"""Files inside the folders of ``PLUMBING`` that results do depend on."""


def code_of(*programs: str) -> list[str]:
    """List the project's files that ``programs`` run, themselves included; sorted and relative to the root.

    Follows every import of the project's own packages, also imports inside functions. Leaves out plumbing and empty
    ``__init__.py`` files.

    Args:
        programs: files relative to the root, such as ``stages/pretrain.py``; absolute if outside the root.
    """
    found: set[str] = set()
    waiting = list(programs)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += [other for other in imports_of(file) if not is_plumbing(other)]
    return sorted(found)


def digests_of(*programs: str) -> dict[str, str]:
    """Digest every file of ``code_of``: path → digest; for a file outside the root, its name without the folder."""
    return {Path(file).name if Path(file).is_absolute() else file: digest(file) for file in code_of(*programs)}


def is_plumbing(file: str) -> bool:
    """Tell whether ``file`` (relative to the root) computes nothing."""
    return file.startswith(PLUMBING) and file not in COMPUTING


@cache
def imports_of(file: str) -> frozenset[str]:
    """List the project's own files that ``file`` imports directly, relative to the root."""
    names: set[str] = set()
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    own = [name.replace(".", "/") for name in names if name.split(".")[0] in ("pipeline", "stages")]
    paths = {f"{name}.py" for name in own}
    for name in own:  # a package's own code runs when something in it is imported
        packages = [name, *map(str, Path(name).parents)]
        paths.update(
            f"{package}/__init__.py"
            for package in packages
            if "/" in package and Path(package) not in Path(file).parents
        )
    return frozenset(path for path in paths if (ROOT / path).is_file() and _says_anything(path))


def _says_anything(path: str) -> bool:
    return not path.endswith("__init__.py") or any(not _is_text(statement) for statement in _tree(path).body)


@cache
def digest(file: str) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the syntax tree of ``file``, without docstrings."""
    parts = "\0".join(_said(_tree(file)))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def _said(node: object) -> Iterator[str]:
    """Yield the tree below ``node`` as words; the fields in ``ast.dump`` differ between versions of Python."""
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if value is None or value == [] or name in ("kind", "type_comment"):
                continue
            if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                value = [statement for statement in value if not _is_text(statement)]
            if isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty parts, 3.11 does not
                value = [part for part in value if not (isinstance(part, ast.Constant) and part.value == "")]
            yield name
            yield from _said(value)
        yield "."
    elif isinstance(node, list):
        yield "["
        for each in node:
            yield from _said(each)
        yield "]"
    else:
        yield repr(node)


def _is_text(statement: ast.stmt) -> bool:
    """Tell whether ``statement`` is a docstring: a bare string, which does nothing."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
