"""What is wrong with a setting, in the words of the file: pydantic's findings as one line for the user."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

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


def line(error: ValidationError, raw: Mapping[str, Any], keys_at: KeysAt) -> str:
    """The most telling of pydantic's findings as ``key: given …, allowed: …``.

    Args:
        raw: what was validated, as read from the file.
    """
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
    key, given = ".".join(parts), _shown(first["input"])
    context = first.get("ctx", {})
    if first["type"] == "string_pattern_mismatch":
        examples = {"resft": "resft_fm-nfe4, resft_fm_unet-nfe16, …", "euler": "euler-1 to euler-1000, dopri5"}
        allowed = next((text for name, text in examples.items() if name in context["pattern"]), "nfe1, nfe2, nfe4, …")
        unknown = first["loc"][-1] == "[key]"
        return f"{key}: unknown key; allowed: {allowed}" if unknown else f"{key}: given {given}, allowed: {allowed}"
    match first["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key; {_allowed_keys(first['loc'][-1], keys_at(first['loc'][:-1]))}"
        case "invalid_key":
            return f"{first['loc'][-1]}: unknown key; keys are text"
        case "missing":
            return f"{key}: missing; it has no default"
        case "value_error":
            prefix = f"{key}." if key else ""
            return prefix + str(context["error"])
        case "literal_error":
            return f"{key}: given {given}, allowed: {context['expected'].replace(' or ', ', ').replace(chr(39), '')}"
        case "union_tag_invalid":
            allowed = context["expected_tags"].replace("'", "")
            return f"{key}.kind: given {_shown(first['input']['kind'])}, allowed: {allowed}"
        case "union_tag_not_found":
            return f"{key}.kind: missing; it has no default"
        case _:
            return f"{key}: given {given}, allowed: {_ALLOWED[first['type']].format(**context)}"


def _shown(value: object) -> str:
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


def _allowed_keys(unknown: object, keys: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(unknown), keys, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(keys)}"
