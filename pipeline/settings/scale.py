"""Change the current scale in ``params.yaml``; its comments stay."""

import sys
from io import StringIO
from pathlib import Path
from typing import get_args

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from pipeline.settings.layers import LISTS, Scale, read, resolve
from pipeline.settings.locks import arrange_locks
from pipeline.settings.schema import parse
from pipeline.settings.source import read_file, read_yaml
from pipeline.utils.atomic import replacing
from pipeline.utils.errors import UserError


def set_scale(path: Path, scale: str) -> None:
    """Make ``scale`` the current scale in ``path``, with the ``lists`` of its block; comments stay as they are.

    If it is the current scale already, the file stays unchanged, even if its lists differ.

    Raises:
        UserError: unknown scale, or a wrong file.
    """
    text = read_file(path)
    if scale not in get_args(Scale):
        raise UserError(f"{path.name}: scale: given {scale!r}, allowed: {', '.join(get_args(Scale))}")
    block = resolve(read(text, path.name)).value.get(scale)
    if block is None or not all(key in block.value and isinstance(block.value[key].value, list) for key in LISTS):
        parse(text, path.name)  # raises, naming the missing list
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    document = read_yaml(text, path.name, yaml)
    if document.get("scale") == scale:
        return
    document["scale"] = scale
    for key in LISTS:
        values = CommentedSeq(document[scale]["lists"][key])
        values.fa.set_flow_style()
        comment = document.ca.items.get(key)
        document[key] = values
        if comment is not None:
            document.ca.items[key] = comment
            for token in comment:
                if token is not None:
                    token.start_mark.column = 0  # one space after the value, whatever its length
    switched = _dump(yaml, document)
    parse(switched, path.name)
    arrange_locks(path.parent, scale)
    with replacing(path) as temporary:
        temporary.write_text(switched, encoding="utf-8")


def _dump(yaml: YAML, document: object) -> str:
    stream = StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def main(arguments: list[str]) -> int:
    """Run ``python -m pipeline.settings.scale SCALE``: make SCALE the current scale, without running a stage."""
    try:
        if len(arguments) != 1:
            raise UserError(f"scale: given {len(arguments)} arguments, allowed: one of {', '.join(get_args(Scale))}")
        set_scale(Path("params.yaml"), arguments[0])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
