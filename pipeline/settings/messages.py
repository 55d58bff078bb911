"""What is wrong with a setting, in the words of the file: pydantic's findings as one line for the user."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.settings.names import RENAMED
from pipeline.settings.source import Keys, Place

_ALLOWED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list, in [ ]",
    "model_type": "a block of keys",
    "model_attributes_type": "a block of keys",
    "dict_type": "a block of keys",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt:,.10g}",
    "less_than_equal": "at most {le}",
    "multiple_of": "multiples of {multiple_of}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
"""What a value must be, by the type of pydantic's finding; its own messages speak of Python's types."""


KeysAt = Callable[[tuple[str | int, ...]], Sequence[str]]
"""From where a block stands in the settings to the keys it may have."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a setting.

    Attributes:
        kind: pydantic's name for it.
        keys: the key in what was validated, part by part.
        trouble: what was given and what is allowed.
    """

    kind: str
    keys: Keys
    trouble: str


def line(error: ValidationError, raw: Mapping[str, Any], keys_at: KeysAt) -> str:
    """The most telling of pydantic's findings as ``key: given …, allowed: …``.

    Args:
        raw: what was validated, as read from the file.
    """
    found = finding(error, raw, keys_at)
    return f"{'.'.join(found.keys)}: {found.trouble}"


def located(found: Finding, name: str, places: Mapping[Keys, Place]) -> str:
    """``found`` among resolved settings, said of the key that was written in the file called ``name``.

    Args:
        places: where every resolved value and block was written; the whole file's is that of no keys.
    """
    keys = found.keys
    if found.kind in ("missing", "union_tag_not_found"):
        return f"{name}: {'.'.join(keys)}: {found.trouble}"
    depth = next(depth for depth in range(len(keys), -1, -1) if keys[:depth] in places)
    place = places[keys[:depth]]
    # two settings that do not fit each other may do so at another scale, or in another task
    elsewhere = found.kind == "value_error" and len(keys) > 2 and place.keys[:2] != keys[:2]
    where = f" (in {'.'.join(keys[:2])})" if elsewhere else ""
    return f"{name}:{place.line}: {'.'.join((*place.keys, *keys[depth:]))}: {found.trouble}{where}"


def finding(error: ValidationError, raw: Mapping[str, Any], keys_at: KeysAt) -> Finding:
    """The most telling of pydantic's findings in ``raw``, which was validated."""
    # a misspelt key is found twice, as a missing and as an unknown one: the latter names what to correct
    first = min(error.errors(), key=lambda finding: finding["type"] != "extra_forbidden")
    # tags of discriminated unions and '[key]' markers are pydantic's own, not keys of the file
    parts: list[str] = []
    value: Any = raw
    for part in first["loc"]:
        if holds(value, part):
            value = value[part]
        elif first["type"] != "missing" or part != first["loc"][-1]:
            continue
        parts.append(str(part))
    more, trouble = _trouble(first, keys_at)
    return Finding(first["type"], (*parts, *more), trouble)


def _trouble(first: ErrorDetails, keys_at: KeysAt) -> tuple[Keys, str]:
    """What is wrong, and the keys that lead there from the block or value that pydantic names."""
    given, context = shown(first["input"]), first.get("ctx", {})
    match first["type"]:
        case "string_pattern_mismatch":
            examples = {"resft": "resft_fm-nfe4, resft_fm_unet-nfe16, …", "euler": "euler-1 to euler-1000, dopri5"}
            found = [text for name, text in examples.items() if name in context["pattern"]]
            allowed = found[0] if found else "nfe1, nfe2, nfe4, …"
            unknown = first["loc"][-1] == "[key]"
            return (), f"unknown key; allowed: {allowed}" if unknown else f"given {given}, allowed: {allowed}"
        case "extra_forbidden":
            return (), f"unknown key; {allowed_keys(first['loc'][-1], keys_at(first['loc'][:-1]))}"
        case "missing":
            return (), "missing; it has no default"
        case "value_error":
            key, _, trouble = str(context["error"]).partition(": ")
            return tuple(key.split(".")), trouble
        case "literal_error":
            return (), f"given {given}, allowed: {context['expected'].replace(' or ', ', ').replace(chr(39), '')}"
        case "union_tag_invalid":
            allowed = context["expected_tags"].replace("'", "")
            return ("kind",), f"given {shown(first['input']['kind'])}, allowed: {allowed}"
        case "union_tag_not_found":
            return ("kind",), "missing; it has no default"
        case _:
            return (), f"given {given}, allowed: {_ALLOWED.get(first['type'], first['msg']).format(**context)}"


def shown(value: object) -> str:
    """``value`` as the file spells it."""
    if isinstance(value, Mapping):
        return "a block of keys"
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def holds(value: object, part: str | int) -> bool:
    """Whether ``value``, as read from YAML, is a mapping with key ``part`` or a list with that index."""
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, Mapping) and part in value


def allowed_keys(unknown: object, keys: Sequence[str]) -> str:
    """The ``keys`` that may stand in the place of an ``unknown`` one, the most similar first of all."""
    if RENAMED.get(str(unknown)) in keys:
        return f"it is called {RENAMED[str(unknown)]} now"
    close = difflib.get_close_matches(str(unknown), keys, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(keys)}"
