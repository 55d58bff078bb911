"""Turn pydantic's validation errors into one line for the user, with the keys and values of the file."""

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
"""Type of pydantic's error → allowed values in words, since pydantic's own messages name Python's types."""


KeysAt = Callable[[tuple[str | int, ...]], Sequence[str]]
"""Location of a block in the settings → keys that the block may have."""


@dataclass(frozen=True)
class Finding:
    """A validation error of one setting.

    Attributes:
        kind: pydantic's type of the error.
        keys: the key in the validated settings, part by part.
        trouble: what was given and what is allowed.
    """

    kind: str
    keys: Keys
    trouble: str


def line(error: ValidationError, raw: Mapping[str, Any], keys_at: KeysAt) -> str:
    """Report the most informative of pydantic's errors as ``key: given …, allowed: …``.

    Args:
        raw: the validated values, as read from the file.
    """
    found = finding(error, raw, keys_at)
    return f"{'.'.join(found.keys)}: {found.trouble}"


def located(found: Finding, name: str, places: Mapping[Keys, Place]) -> str:
    """Report ``found``, an error in resolved settings, with the line and key in the file called ``name``.

    Args:
        places: keys of a resolved value or block → its place in the file; no keys → the whole file.
    """
    keys = found.keys
    if found.kind in ("missing", "union_tag_not_found"):
        return f"{name}: {'.'.join(keys)}: {found.trouble}"
    depth = next(depth for depth in range(len(keys), -1, -1) if keys[:depth] in places)
    place = places[keys[:depth]]
    # settings that do not fit together here may fit at another scale or in another task, so name these
    elsewhere = found.kind == "value_error" and len(keys) > 2 and place.keys[:2] != keys[:2]
    where = f" (in {'.'.join(keys[:2])})" if elsewhere else ""
    return f"{name}:{place.line}: {'.'.join((*place.keys, *keys[depth:]))}: {found.trouble}{where}"


def finding(error: ValidationError, raw: Mapping[str, Any], keys_at: KeysAt) -> Finding:
    """Return the most informative of pydantic's errors in the validated values ``raw``."""
    # a misspelt key gives two errors, a missing and an unknown key; the unknown key is the one to correct
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
    """Describe the error, with the keys that lead to it from the block or value that pydantic names."""
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
    """Spell ``value`` as YAML does; a block as words."""
    if isinstance(value, Mapping):
        return "a block of keys"
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def holds(value: object, part: str | int) -> bool:
    """Tell whether ``value``, as read from YAML, is a mapping with key ``part`` or a list with that index."""
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, Mapping) and part in value


def allowed_keys(unknown: object, keys: Sequence[str]) -> str:
    """List the ``keys`` allowed in place of an ``unknown`` one; first suggest the present name or a similar key."""
    if RENAMED.get(str(unknown)) in keys:
        return f"it is called {RENAMED[str(unknown)]} now"
    close = difflib.get_close_matches(str(unknown), keys, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(keys)}"
