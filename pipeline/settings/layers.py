"""Resolve the layers of ``params.yaml`` into a task's settings at a scale, each with the line that it comes from.

Four blocks give a task's settings; a later one wins: ``robot`` (for image tasks ``image``), the scale's ``robot`` or
``image``, the task's block, the scale's block of the task. ``common`` gives the rest. ``gap`` and ``toys`` have two
blocks: their own and the scale's. Among recipes, ``every`` holds for all of them. A net of another ``kind`` replaces
the earlier net.

A block of a robot task may have any name if one of its layers has the key ``task``. If the scale's ``robot`` has this
key, the tasks that the scale lists need no block. In texts, ``{block}`` stands for the block's name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import reduce
from typing import Any, Literal, get_args

from pydantic import ValidationError, create_model

from pipeline.settings.blocks import Block, Optimization
from pipeline.settings.images import ImageTask, ImageTaskSettings
from pipeline.settings.messages import Finding, allowed_keys, finding, located, shown
from pipeline.settings.robots import TaskSettings
from pipeline.settings.shapes import PLAIN, Shape, keys_of, models_at, of_kind, shared_keys
from pipeline.settings.source import Keys, Node, Place, read_nodes
from pipeline.settings.toys import GapSettings, ToySettings
from pipeline.tasks.loader import FORMER, own_tasks
from pipeline.utils.errors import UserError

Scale = Literal["starter", "lab", "paper", "metaworld"]

LISTS = ("tasks", "nfe", "residual", "robustness", "diffusion", "baselines", "images", "image_nfe", "offline", "theory")
"""Top-level keys that select what is made. The block ``lists`` of a scale holds that scale's own values."""

MODELS: dict[str, type[Block]] = {
    "robot": TaskSettings,
    "image": ImageTaskSettings,
    **dict.fromkeys(get_args(ImageTask), ImageTaskSettings),
    "gap": GapSettings,
    "toys": ToySettings,
}
"""Name of a layer → its model, the same at the top of the file and in a scale. Other layers are of robot tasks."""

EVERY = "every"
"""Name among recipes whose keys hold for all of them."""

Known = Mapping[str, "Shape | Known"]
_LISTS: Known = dict.fromkeys(LISTS, PLAIN)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = {"scale", "common", "lists", *LISTS, *MODELS, *get_args(Scale)}
_LIKE = {"diffusion": "pretrain"}
"""Training of a task → the training from which it takes the settings that it does not give."""


def read(text: str, name: str) -> Node:
    """Read the ``text`` of the file called ``name``, unresolved, and check that all its keys are known.

    Raises:
        UserError: no YAML, or a key unknown in its place; one line with the file, the line and the key.
    """
    file = read_nodes(text, name)
    if not file.is_block:
        raise UserError(f"{name}: holds no keys; allowed: a mapping with {', '.join(_known(own_tasks()))}")
    _require_known(file, _known(robot_blocks(file)), name)
    return file


def _known(robots: Sequence[str]) -> Known:
    """Return the keys that a file may have, given the names of its blocks of robot tasks."""
    names = ("robot", *robots, *(name for name in MODELS if name != "robot"))
    layers: Known = {name: Shape((MODELS.get(name, TaskSettings),)) for name in names}
    return {
        "scale": PLAIN,
        **_LISTS,
        "common": dict.fromkeys(shared_keys(tuple(dict.fromkeys(MODELS.values()))), PLAIN),
        **layers,
        **{scale: {"lists": _LISTS, **layers} for scale in get_args(Scale)},
    }


def robot_blocks(file: Node) -> list[str]:
    """List the names that blocks of robot tasks may have in ``file``: names of tasks, and of blocks with a ``task``."""
    blocks = [file, *(node for name, node in file.value.items() if name in get_args(Scale) and node.is_block)]
    known = (*own_tasks(), *FORMER)
    named = [
        name
        for block in blocks
        for name, node in block.value.items()
        if name in known or (node.is_block and "task" in node.value)
    ]
    for block in blocks:
        if "task" in _inside(block, "robot"):
            named += _names(_inside(block, "lists").get("tasks"))
    allowed = [name for name in named if name in known or (name not in _RESERVED and _NAME.fullmatch(name))]
    return list(dict.fromkeys([*allowed, *known]))


def _names(listed: Node | None) -> list[str]:
    return [name for name in listed.value if isinstance(name, str)] if listed and isinstance(listed.value, list) else []


def _require_known(block: Node, known: Known, name: str) -> None:
    """Refuse a key that is not ``known``, and a plain value in place of a block, in ``block`` and all inner blocks."""
    for key, node in block.value.items():
        at = f"{name}:{node.place.line}: {node.place.key}"
        if key not in known:
            more = (
                "; or a new name, of small letters, digits and _, for a block with a key task"
                if "robot" in known
                else ""
            )
            raise UserError(f"{at}: unknown key; {allowed_keys(key, list(known))}{more}")
        shape = known[key]
        if shape == PLAIN:
            continue
        if not node.is_block:
            raise UserError(f"{at}: given {shown(node.value)}, allowed: a block of keys")
        if isinstance(shape, Shape):
            _require_shape(node, shape, name)
        else:
            _require_known(node, shape, name)


def _require_shape(node: Node, shape: Shape, name: str) -> None:
    if shape.named and shape.models:
        names: Known = dict.fromkeys(node.value, Shape(shape.models))
        _require_known(node, names, name)
    elif shape.models:
        _require_known(node, keys_of(_chosen(node, shape.models)), name)


def resolve(file: Node) -> Node:
    """Resolve all settings of a ``file`` from ``read``, in the form of ``schema.Settings``."""
    written = {key: file.value[key] for key in ("scale", *LISTS) if key in file.value}
    scales = {scale: _resolve_scale(file, file.value[scale]) for scale in get_args(Scale) if scale in file.value}
    return Node(written | scales, file.place)


def _resolve_scale(file: Node, block: Node) -> Node:
    """Resolve a scale: its lists, the blocks named in them, and its own blocks."""
    lists, common = _inside(block, "lists"), _inside(file, "common")
    found = dict(lists)
    for name in _made_at(file, block, lists):
        places = [(file, group_of(name)), (block, group_of(name)), (file, name), (block, name)]
        layers = [above.value[key] for above, key in places if key in above.value]
        whole = _resolve_block(layers or [Node({}, block.place)], MODELS.get(name, TaskSettings), common)
        found[name] = _called(whole, name) if group_of(name) == "robot" else whole
    return Node(found, block.place)


def _called(node: Node, name: str) -> Node:
    """Fill the block's name into texts: ``{block}``; ``{block-}`` with hyphens; ``{Block}`` in camel case."""
    if node.is_block:
        return Node({key: _called(inner, name) for key, inner in node.value.items()}, node.place)
    if not isinstance(node.value, str):
        return node
    forms = {"{block}": name, "{block-}": name.replace("_", "-"), "{Block}": name.title().replace("_", "")}
    return Node(reduce(lambda text, form: text.replace(form, forms[form]), forms, node.value), node.place)


def group_of(name: str) -> str:
    """Return the layer below the block ``name``: ``image`` or ``robot``; empty: none."""
    return {ImageTaskSettings: "image", TaskSettings: "robot"}.get(MODELS.get(name, TaskSettings), "")


def _made_at(file: Node, block: Node, lists: Mapping[str, Node]) -> list[str]:
    """List a scale's blocks: ``gap``, ``toys``, the tasks in its lists, and the tasks with a block in it."""
    listed = [lists[key].value for key in ("tasks", "images") if key in lists]
    named = [name for names in listed if isinstance(names, list) for name in names]
    names = [name for name in (*robot_blocks(file), *MODELS) if name not in ("robot", "image")]
    return [name for name in names if name in ("gap", "toys", *block.value, *named)]


def _inside(block: Node, key: str) -> Mapping[str, Node]:
    return block.value[key].value if key in block.value else {}


def _resolve_block(layers: Sequence[Node], model: type[Block], common: Mapping[str, Node]) -> Node:
    """Resolve a block from its ``layers``, a later one over an earlier one; ``common`` gives missing keys."""
    for key, shape in keys_of((model,)).items():
        if shape.named and shape.models:
            layers = _spelled_out(layers, key)
    whole = reduce(_merged, layers)
    for key, other in _LIKE.items():
        if model is TaskSettings and other in whole.value:
            told = whole.value[other]
            shared = {name: told.value[name] for name in Optimization.model_fields if name in told.value}
            like = Node(shared, told.place)
            whole = _merged(Node({key: like}, whole.place), whole)
    return _filled(whole, Shape((model,)), common)


def _spelled_out(layers: Sequence[Node], key: str) -> list[Node]:
    """Replace ``every`` in the block ``key`` of ``layers`` by all recipe names that any of them has there."""
    names = dict.fromkeys(name for layer in layers for name in _inside(layer, key) if name != EVERY)
    return [_spelled_out_one(layer, key, list(names)) if key in layer.value else layer for layer in layers]


def _spelled_out_one(layer: Node, key: str, names: Sequence[str]) -> Node:
    block = layer.value[key]
    every = block.value.get(EVERY)
    found = {name: block.value[name] for name in names if name in block.value}
    if every:
        found = {name: _merged(every, found[name]) if name in found else every for name in names}
    return Node(layer.value | {key: Node(found, block.place)}, layer.place)


def _merged(under: Node, over: Node) -> Node:
    """Merge ``over`` into ``under``; return ``over`` alone if it is of another kind."""
    if not (under.is_block and over.is_block) or (_kind(under) and _kind(over) not in (None, _kind(under))):
        return over
    inner = {key: _merged(under.value[key], node) if key in under.value else node for key, node in over.value.items()}
    return Node(under.value | inner, over.place)


def _kind(block: Node) -> object:
    return block.value["kind"].value if "kind" in block.value else None


def _chosen(block: Node, models: tuple[type[Block], ...]) -> tuple[type[Block], ...]:
    """Return the ``models`` that ``block`` may have, by its kind if it has one."""
    return of_kind(models, _kind(block))


def _filled(node: Node, shape: Shape, common: Mapping[str, Node]) -> Node:
    """Add the keys that ``node`` lacks from ``common``, in inner blocks too."""
    if shape.named:
        inside = Shape(shape.models)
        return Node({name: _filled(child, inside, common) for name, child in node.value.items()}, node.place)
    models = _chosen(node, shape.models)
    if len(models) != 1:
        return node
    found = dict(node.value)
    for key, inner in keys_of(models).items():
        if inner == PLAIN and key in common:
            found.setdefault(key, common[key])
        elif inner.models and key in found:
            found[key] = _filled(found[key], inner, common)
    return Node(found, node.place)


def require_overridden(file: Node, resolved: Node, name: str) -> None:
    """Refuse a wrong value even if more specific keys override it everywhere, so that no ``resolved`` setting has it.

    Raises:
        UserError: one line with the file, the line, the key, what was given and what is allowed.
    """
    deciding = {place for _, place in resolved.places()}
    for keys, node in file.leaves():
        layer, *inside = keys[1:] if keys[0] in get_args(Scale) else keys
        if node.place in deciding or layer in _RESERVED - MODELS.keys():
            continue
        within = models_at(MODELS.get(layer, TaskSettings), inside[:-1])
        models = [model for model in within if keys[-1] in model.model_fields]
        found = [_wrong(model, keys[-1], node.value) for model in models]
        if found and found[0] and all(found):
            raise UserError(located(found[0], name, {keys[-1:]: node.place}))


def _wrong(model: type[Block], key: str, value: object) -> Finding | None:
    """Validate ``value`` as the ``key`` of a ``model``, regardless of its other keys; None: the value is valid."""
    field = model.model_fields[key]
    fields: dict[str, Any] = {key: (field.annotation, copy(field))}
    alone = create_model("Alone", __base__=Block, **fields)
    try:
        alone.model_validate({key: value})
    except ValidationError as error:
        return finding(error, {key: value}, lambda _keys: ())
    return None


def without_effect(before: str, after: str, name: str = "params.yaml") -> list[str]:
    """Find changed keys without effect on the run.

    The run covers the tasks and images that the top of ``after`` names, at its scale, and ``gap`` and ``toys``.

    Args:
        before: the text of the file as it was. A key that was removed since is not reported.
        after: the text of the file as it is.
        name: the name of the file.

    Returns:
        one line per key, with its line in ``after`` and the keys that override it.

    Raises:
        UserError: as ``read``.
    """
    file = read(after, name)
    old = {keys: node.value for keys, node in read(before, name).leaves()}
    run = _run(file)
    deciding = {node.place for block in run.values() for _, node in block.leaves()}
    changed = [node.place for keys, node in file.leaves() if keys not in old or old[keys] != node.value]
    idle = [place for place in changed if place not in deciding and place.keys[0] not in ("scale", *LISTS)]
    return [f"{name}:{place.line}: {place.key}: changes nothing: {_why_idle(place.keys, file, run)}" for place in idle]


def _run(file: Node) -> dict[str, Node]:
    """Return the resolved blocks of the current scale that are run: selected tasks and images, ``gap``, ``toys``."""
    settings = resolve(file).value
    blocks = settings[settings["scale"].value].value
    selected = [*settings["tasks"].value, *settings["images"].value, "gap", "toys"]
    return {name: block for name, block in blocks.items() if name in selected}


def _why_idle(keys: Keys, file: Node, run: Mapping[str, Node]) -> str:
    """Explain why ``keys`` have no effect: other keys override them, or nothing that is ``run`` reads them."""
    scale = file.value["scale"].value
    if keys[:2] == (scale, "lists"):
        return f"the lists at the top of the file are those of the current scale, {scale}"
    within = keys[1:] if keys[0] == scale else keys
    found = list(dict.fromkeys(place for name, block in run.items() for place in _overriding(within, name, block)))
    if not found:
        return f"nothing that is run reads it, which is {', '.join(run)} at scale {scale}"
    first = ", ".join(f"{place.key} (line {place.line})" for place in found[:3])
    return f"overridden by {first}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _overriding(keys: Keys, name: str, block: Node) -> Iterator[Place]:
    """Yield the places in the block ``name`` that give the values of ``keys`` of a more general block."""
    if keys[0] == "common":
        yield from (node.place for inner, node in block.leaves() if inner[-1] == keys[1])
    elif keys[0] in (name, group_of(name)):
        yield from _places(block, keys[1:])


def _places(node: Node, keys: Keys) -> Iterator[Place]:
    """Yield the places of the values in ``node`` that ``keys`` name."""
    if not node.is_block or not keys:
        yield node.place
    elif keys[0] == EVERY:
        yield from (place for inner in node.value.values() for place in _places(inner, keys[1:]))
    elif keys[0] in node.value:
        yield from _places(node.value[keys[0]], keys[1:])
    elif "kind" in node.value:  # the net of this kind replaced the one that has the key
        yield node.value["kind"].place
