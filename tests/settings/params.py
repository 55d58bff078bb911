"""The project's params.yaml as tests change it, and the one line that a wrong file is refused with."""

from io import StringIO
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.settings import schema
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def raw() -> dict[str, Any]:
    """What params.yaml holds, as it is written."""
    return YAML(typ="safe").load(TEXT)


def dumped(values: object) -> str:
    """``values`` as YAML."""
    stream, yaml = StringIO(), YAML(typ="safe")
    yaml.representer.ignore_aliases = lambda _: True
    yaml.dump(values, stream)
    return stream.getvalue()


def changed(key: str, value: object) -> str:
    """params.yaml with ``key`` set to ``value``, in blocks made for it if need be; its lines are others."""
    values = raw()
    *blocks, last = key.split(".")
    block = values
    for name in blocks:
        block = block.setdefault(name, {})
    block[last] = value
    return dumped(values)


def replaced(old: str, new: str) -> str:
    """params.yaml with ``new`` in the first place of ``old``."""
    assert old in TEXT
    return TEXT.replace(old, new, 1)


def line_of(text: str, inside: str = TEXT) -> int:
    """The number of the line in which the first ``text`` ends."""
    return inside[: inside.index(text) + len(text)].rstrip("\n").count("\n") + 1


def refused(text: str) -> str:
    """The one line that settings in ``text`` are refused with."""
    with pytest.raises(UserError) as raised:
        schema.parse(text, "params.yaml")
    line = str(raised.value)
    assert "\n" not in line
    return line
