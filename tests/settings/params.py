"""Edit the project's params.yaml as text, and parse the result."""

from io import StringIO
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.settings import schema
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def raw() -> dict[str, Any]:
    """Return the content of params.yaml as it is written."""
    return YAML(typ="safe").load(TEXT)


def dumped(values: object) -> str:
    """Return ``values`` as YAML."""
    stream, yaml = StringIO(), YAML(typ="safe")
    yaml.representer.ignore_aliases = lambda _: True
    yaml.dump(values, stream)
    return stream.getvalue()


def changed(key: str, value: object) -> str:
    """Return params.yaml with ``key`` set to ``value``, and missing blocks added; its line numbers change."""
    values = raw()
    *blocks, last = key.split(".")
    block = values
    for name in blocks:
        block = block.setdefault(name, {})
    block[last] = value
    return dumped(values)


def replaced(old: str, new: str) -> str:
    """Return params.yaml with ``new`` in place of the first ``old``."""
    assert old in TEXT
    return TEXT.replace(old, new, 1)


def line_of(text: str, inside: str = TEXT) -> int:
    """Return the number of the line in which the first ``text`` ends."""
    return inside[: inside.index(text) + len(text)].rstrip("\n").count("\n") + 1


def parsed(text: str) -> schema.Settings:
    return schema.parse(text, "params.yaml")


def refused(text: str) -> str:
    """Return the one-line error of the settings in ``text``."""
    with pytest.raises(UserError) as raised:
        parsed(text)
    line = str(raised.value)
    assert "\n" not in line
    return line
