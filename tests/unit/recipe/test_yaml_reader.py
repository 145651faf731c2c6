"""YAML 1.2 scalars: what looks like a number is one, what looks like a word stays one."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layerroute.errors import UserError
from layerroute.recipe.yaml_reader import dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("12", 12),
        ("-7", -7),
        ("010", 10),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("'1e3'", "1e3"),
        ("<<", "<<"),
        ("e5", "e5"),
        ("-", [None]),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    parsed = parse(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("!!bool maybe", "'maybe' is no bool"),
        ("!!float ''", "'' is no float"),
        ("!!float 1:2:x", "'1:2:x' is no float"),
        ("!!int abc", "'abc' is no int"),
        ("!!int 1_000", "'1_000' is no int"),
        ("!!null x", "'x' is no null"),
        ("!!bool [x]", "expected a scalar"),
        ("!!map [x]", "expected a mapping"),
        ("!!map x", "expected a mapping"),
        ("!!seq {x: 1}", "expected a sequence"),
        ("!!timestamp x", "timestamp"),
        ("!!timestamp 2001-01-01", "timestamp"),
        ("!!set [1]", "set"),
        ("!!set {x}", "set"),
        ("!!binary aGk=", "binary"),
        ("!!omap [x: 1]", "omap"),
        ("!!python/name:os.system", "python"),
    ],
)
def test_a_tag_makes_no_value_that_recipes_do_not_have(text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        parse(f"key: {text}", "here")
    assert str(error.value).startswith("here, line 1: not valid YAML: ") and words in str(error.value)


def test_tags_of_the_core_schema_are_read() -> None:
    text = "[!!float 1, !!str 1, !!int 0x1F, !!bool True, !!null '', !!seq [1], !!map {!!str a: 1}]"
    assert parse(text, "here") == [1.0, "1", 31, True, None, [1], {"a": 1}]


def test_infinities() -> None:
    assert parse("[.inf, -.inf]", "here") == [math.inf, -math.inf]
    assert math.isnan(parse(".nan", "here"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
@example({"\x85": "\u2028", "é": "\u2029 \x85"})
def test_what_is_dumped_reads_back(value: Any) -> None:
    assert parse(dump(value), "here") == value


@given(
    st.sampled_from(
        ["1e3", "0x1f", "no", "010", "~", "null", "1.5", ".inf", "true", "<<", "2024-01-01", "=", "1_0"]
    )
)
def test_texts_that_look_like_something_else_read_back_as_text(text: str) -> None:
    assert parse(dump({"key": text}), "here") == {"key": text}
