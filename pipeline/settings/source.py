"""Read ``params.yaml`` into values that keep the key and the line that they were written at."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode

from pipeline.utils.errors import UserError

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """A key of the file, part by part, and the line, from 1, that it stands in."""

    keys: Keys
    line: int

    @property
    def key(self) -> str:
        """The key as it is written behind ``-S``, such as ``robot.pretrain.lr``."""
        return ".".join(self.keys)


@dataclass(frozen=True)
class Node:
    """A value and its place.

    Attributes:
        value: of a block, the nodes by their keys; else what YAML says.
    """

    value: Any
    place: Place

    def plain(self) -> Any:
        """The value without places."""
        return {key: node.plain() for key, node in self.value.items()} if self.is_block else self.value

    @property
    def is_block(self) -> bool:
        return isinstance(self.value, dict)

    def places(self, *keys: str) -> Iterator[tuple[Keys, Place]]:
        """The place of each value in this block, by its keys here: blocks before their keys; this node is the first."""
        yield keys, self.place
        for key, node in self.value.items() if self.is_block else ():
            yield from node.places(*keys, key)

    def leaves(self, *keys: str) -> Iterator[tuple[Keys, "Node"]]:
        """Every value in this block that is no block itself, by its keys here."""
        for key, node in self.value.items():
            if node.is_block:
                yield from node.leaves(*keys, key)
            else:
                yield (*keys, key), node


def read_file(path: Path) -> str:
    """The text of ``path``.

    Raises:
        UserError: it is missing, or no UTF-8 text.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; run from the project's root, where params.yaml is")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path.name}: no valid YAML: it is not UTF-8 text") from None


def read_yaml(text: str, name: str, yaml: YAML | None = None) -> Any:
    """The values in ``text``, read by ``yaml`` (None: into plain Python values).

    Raises:
        UserError: no YAML; one line with the file's ``name`` and the line.
    """
    try:
        return (yaml or YAML(typ="safe")).load(text)
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        trouble = f"line {mark.line + 1}: {problem}" if mark and problem else " ".join(str(error).split())
        raise UserError(f"{name}: no valid YAML: {trouble}") from None


def read_nodes(text: str, name: str) -> Node:
    """The values in ``text`` with their places.

    Raises:
        UserError: no YAML, an alias, a merge key or a key that is no text; one line with the file's ``name``.
    """
    values = read_yaml(text, name)
    composed = YAML(typ="safe").compose(text)
    _refuse_shared(composed, name, set())
    return _node(values, composed, Place((), 1), name)


def _node(value: Any, composed: Any, place: Place, name: str) -> Node:
    """``value``, which YAML composed as ``composed``, with its place."""
    if not isinstance(value, dict):
        return Node(value, place)
    nodes = {}
    for (key, inner), (key_node, value_node) in zip(value.items(), composed.value, strict=True):
        inside = Place((*place.keys, str(key)), key_node.start_mark.line + 1)
        if not isinstance(key, str):
            raise UserError(f"{name}:{inside.line}: {inside.key}: unknown key; keys are text")
        nodes[key] = _node(inner, value_node, inside, name)
    return Node(nodes, place)


def _refuse_shared(composed: Any, name: str, seen: set[int]) -> None:
    """Refuse a value that stands in two places: DVC would change one of them, or both, by an override of either."""
    if not isinstance(composed, MappingNode):
        return
    for key, value in composed.value:
        if key.tag.endswith(":merge") or id(value) in seen:
            given = "a merge key" if key.tag.endswith(":merge") else "an alias"
            at = f"{name}:{key.start_mark.line + 1}: {key.value}"
            raise UserError(f"{at}: given {given}, allowed: values written out")
        seen.add(id(value))
        _refuse_shared(value, name, seen)
