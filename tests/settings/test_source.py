"""Keys and lines of the values in a YAML file, and refusal of values that several keys share."""

import pytest

from pipeline.settings.source import read_nodes
from pipeline.utils.errors import UserError


def test_each_value_has_its_key_and_line() -> None:
    text = "# first\na: {b: 1, c: [1, 2]}\nd:\n  e:\n    f: {}\n"
    found = {place.key: place.line for keys, place in read_nodes(text, "x.yaml").places() if keys}
    assert found == {"a": 2, "a.b": 2, "a.c": 2, "d": 3, "d.e": 4, "d.e.f": 5}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &x {b: 1}\nc: *x\n", "x.yaml:2: c: given an alias, allowed: values written out"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "x.yaml:3: <<: given a merge key, allowed: values written out"),
        ("a:\n  2: 1\n", "x.yaml:2: a.2: unknown key; keys are text"),
        (
            "a:\n  b: 0\n  b: 1\n",
            'x.yaml: no valid YAML: line 3: found duplicate key "b" with value "1" (original value: "0")',
        ),
        ("a: [b\n", "x.yaml: no valid YAML: line 2: did not find expected ',' or ']'"),
    ],
)
def test_aliases_duplicate_keys_and_invalid_yaml_are_refused(text: str, line: str) -> None:
    with pytest.raises(UserError) as raised:
        read_nodes(text, "x.yaml")
    assert str(raised.value) == line
