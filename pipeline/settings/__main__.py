"""Print the settings of a task at a scale, each with the line of ``params.yaml`` that it comes from.

``python -m pipeline.settings SCALE TASK [KEY]``, such as ``lab kitchen pretrain``. TASK may also be an image task, gap
or toys. KEY is a setting or a block of settings.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pipeline.settings.layers import Scale
from pipeline.settings.schema import resolved
from pipeline.settings.source import Node, read_file
from pipeline.utils.errors import UserError


def lines(path: Path, scale: str, task: str, start: str = "") -> list[str]:
    """List the settings of ``task`` at ``scale`` in the file ``path`` whose keys begin with ``start``.

    Raises:
        UserError: the file is wrong, or has no such scale, task or key.
    """
    _, whole = resolved(read_file(path), path.name)
    if scale not in get_args(Scale):
        raise UserError(f"scale: given {scale!r}, allowed: {', '.join(get_args(Scale))}")
    blocks = {name: block for name, block in whole.value[scale].value.items() if block.is_block}
    if task not in blocks:
        raise UserError(f"task: given {task!r}, allowed at scale {scale}: {', '.join(blocks)}")
    found = [(".".join(keys), node) for keys, node in blocks[task].leaves() if _begins(keys, start)]
    if not found:
        raise UserError(
            f"key: given {start!r}, allowed: {', '.join(blocks[task].value)} of {scale}.{task}, or one inside"
        )
    return list(_aligned(found, path.name))


def _begins(keys: tuple[str, ...], start: str) -> bool:
    """Tell whether ``start`` is the key with these parts, or one of the blocks that hold it."""
    return not start or f"{'.'.join(keys)}.".startswith(f"{start}.")


def _aligned(found: list[tuple[str, Node]], name: str) -> Iterator[str]:
    shown = [(f"{key}: {_shown(node.value)}", node.place) for key, node in found]
    width = max(len(text) for text, _ in shown)
    for text, place in shown:
        yield f"{text:<{width}}   {name}:{place.line} {place.key}"


def _shown(value: object) -> str:
    """Spell ``value`` as YAML does."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.settings", description=__doc__)
    parser.add_argument("scale", help=", ".join(get_args(Scale)))
    parser.add_argument("task", help="such as kitchen, cifar10, gap")
    parser.add_argument("key", nargs="?", default="", help="such as pretrain or finetune.nfe1.lr; default: all")
    given = parser.parse_args(arguments)
    try:
        print("\n".join(lines(Path("params.yaml"), given.scale, given.task, given.key)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
