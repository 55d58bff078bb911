"""Derive the keys that a block of ``params.yaml`` may have from its pydantic models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin

from pipeline.settings.blocks import Block


@dataclass(frozen=True)
class Shape:
    """The kind of value that a key has.

    Attributes:
        models: models of the block; several if ``kind`` chooses among them; empty: a plain value.
        named: the value maps free names, such as ``nfe16``, to blocks of these models.
        free: the value is a block with any keys.
    """

    models: tuple[type[Block], ...] = ()
    named: bool = False
    free: bool = False


PLAIN = Shape()


@cache
def keys_of(models: tuple[type[Block], ...]) -> Mapping[str, Shape]:
    """Return the keys of a block that has one of ``models``."""
    keys: dict[str, Shape] = {}
    for model in models:
        for key, field in model.model_fields.items():
            old, new = keys.get(key, PLAIN), _shape(field.annotation)
            keys[key] = Shape(tuple(dict.fromkeys((*old.models, *new.models))), new.named, new.free)
    return keys


def of_kind(models: tuple[type[Block], ...], kind: object) -> tuple[type[Block], ...]:
    """Return the ``models`` of this ``kind``; all models if none has it."""
    return tuple(model for model in models if _kind(model) == kind) or models


def keys_at(root: type[Block], location: Sequence[object]) -> list[str]:
    """List the keys of the block at pydantic's ``location`` in a ``root``."""
    return list(keys_of(models_at(root, location)))


def models_at(root: type[Block], location: Sequence[object]) -> tuple[type[Block], ...]:
    """Return the models of the block at ``location`` in a ``root``; pydantic puts kinds between the keys."""
    shape = Shape((root,))
    for part in location:
        if shape.named:
            shape = Shape(shape.models)
        elif any(_kind(model) == part for model in shape.models):
            shape = Shape(of_kind(shape.models, part))
        else:
            shape = keys_of(shape.models).get(str(part), Shape(_others(shape.models)))
    return shape.models


def _others(models: tuple[type[Block], ...]) -> tuple[type[Block], ...]:
    """Return the model of the blocks with free names that one of ``models`` allows beside its fields."""
    found = [get_args(model.__annotations__.get("__pydantic_extra__")) for model in models]
    return tuple(arguments[1] for arguments in found if arguments)


def shared_keys(roots: tuple[type[Block], ...]) -> list[str]:
    """List the keys of plain values that more than one block inside ``roots`` has."""
    times: dict[str, int] = {}
    for model in _models_in(roots):
        for key, shape in keys_of((model,)).items():
            if shape == PLAIN and key != "kind":
                times[key] = times.get(key, 0) + 1
    return [key for key, found in times.items() if found > 1]


def _models_in(models: tuple[type[Block], ...]) -> dict[type[Block], None]:
    """Collect ``models`` and the models of their inner blocks, in order."""
    found: dict[type[Block], None] = {}
    for model in models:
        found[model] = None
        for shape in keys_of((model,)).values():
            found |= _models_in(shape.models)
    return found


def _kind(model: type[Block]) -> object:
    field = model.model_fields.get("kind")
    return get_args(field.annotation)[0] if field else None


def _shape(annotation: Any) -> Shape:
    """Return the shape of a field: a plain value, a block, one of several blocks, or a mapping of names to blocks."""
    options = (annotation, *get_args(annotation))
    if dict[str, Any] in options:
        return Shape(free=True)
    if get_origin(annotation) is dict:
        return Shape(_shape(get_args(annotation)[1]).models, named=True)
    return Shape(tuple(option for option in options if isinstance(option, type) and issubclass(option, Block)))
