"""Read ``params.yaml`` into values that know their key and line in the file."""

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
    """A key of the file, part by part, and its line, counted from 1."""

    keys: Keys
    line: int

    @property
    def key(self) -> str:
        """The key as given to ``-S``, such as ``robot.pretrain.lr``."""
        return ".".join(self.keys)


@dataclass(frozen=True)
class Node:
    """A value and its place.

    Attributes:
        value: for a block: key → node; else the value from YAML.
    """

    value: Any
    place: Place

    def plain(self) -> Any:
        """Return the value without places."""
        return {key: node.plain() for key, node in self.value.items()} if self.is_block else self.value

    @property
    def is_block(self) -> bool:
        return isinstance(self.value, dict)

    def places(self, *keys: str) -> Iterator[tuple[Keys, Place]]:
        """Yield keys and place of this node and of every node inside; a block comes before its keys."""
        yield keys, self.place
        for key, node in self.value.items() if self.is_block else ():
            yield from node.places(*keys, key)

    def leaves(self, *keys: str) -> Iterator[tuple[Keys, "Node"]]:
        """Yield keys and node of every value inside this block that is no block itself."""
        for key, node in self.value.items():
            if node.is_block:
                yield from node.leaves(*keys, key)
            else:
                yield (*keys, key), node


def read_file(path: Path) -> str:
    """Read the text of ``path``.

    Raises:
        UserError: the file is missing, or is no UTF-8 text.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; run from the project's root, where params.yaml is")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path.name}: no valid YAML: it is not UTF-8 text") from None


def read_yaml(text: str, name: str, yaml: YAML | None = None) -> Any:
    """Parse the values in ``text`` with ``yaml`` (None: into plain Python values).

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
    """Parse the values in ``text`` with their places.

    Raises:
        UserError: no YAML, an alias, a merge key or a key that is no text; one line with the file's ``name``.
    """
    values = read_yaml(text, name)
    composed = YAML(typ="safe").compose(text)
    _refuse_shared(composed, name, set())
    return _node(values, composed, Place((), 1), name)


def _node(value: Any, composed: Any, place: Place, name: str) -> Node:
    """Make the node of ``value``; ``composed`` is its YAML node."""
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
    """Refuse aliases and merge keys: an override by DVC would change only one of the shared values, or both."""
    if not isinstance(composed, MappingNode):
        return
    for key, value in composed.value:
        if key.tag.endswith(":merge") or id(value) in seen:
            given = "a merge key" if key.tag.endswith(":merge") else "an alias"
            at = f"{name}:{key.start_mark.line + 1}: {key.value}"
            raise UserError(f"{at}: given {given}, allowed: values written out")
        seen.add(id(value))
        _refuse_shared(value, name, seen)
