"""Numbers as people type them: values, kept text, refusals, and the way through YAML and JSON."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advcli.recipe import Recipe
from advcli.recipe.number import Number, parse_number, plain

TYPED = {
    "8/255": 8 / 255,
    "1e-3": 0.001,
    "5E-4": 0.0005,
    "1e+2": 100.0,
    ".5": 0.5,
    "2.": 2.0,
    "-3": -3.0,
    "+0.25": 0.25,
    "0.5/255": 0.5 / 255,
    "1e-1/4": 0.025,
    "-1/-4": 0.25,
    "0": 0.0,
}


@pytest.mark.parametrize(("text", "value"), TYPED.items())
def test_text_is_read_and_kept(text: str, value: float) -> None:
    number = parse_number(f" {text}\t")
    assert (float(number), number.text) == (value, text)


@pytest.mark.parametrize(("given_", "text"), [(10, "10"), (0, "0"), (0.1, "0.1"), (2.5, "2.5"), (123456789, "123456789")])
def test_numbers_are_read(given_: float, text: str) -> None:
    number = parse_number(given_)
    assert (float(number), number.text) == (given_, text)
    assert parse_number(number) is number


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "8/", "/255", "8/255/2", "8//255", "8:255", "8 255", "1,5", "0x10", "1_000"),
        *("e5", "1e", ".", "--1", "nan", "inf", "-inf", "fast"),
        *(None, True, False, [1], {"a": 1}, (1,), b"1", 1j, object()),
    ],
)
def test_what_is_no_number_is_refused_with_a_hint(value: object) -> None:
    with pytest.raises(ValueError, match="expected a number such as"):
        parse_number(value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("8/0", "divides by zero"),
        ("1/-0.0", "divides by zero"),
        ("1/1e-999", "divides by zero"),  # the smallest double is 5e-324
        ("1e999", "finite"),
        ("1e300/1e-300", "finite"),
        ("1e999/1e999", "finite"),
        (math.inf, "finite"),
        (math.nan, "finite"),
        pytest.param(10**400, "finite", id="10**400"),
    ],
)
def test_what_is_not_finite_is_refused(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_number(value)


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60))
def test_every_finite_number_keeps_its_value(value: float) -> None:
    """As itself, as text, and through the text that is kept."""
    number = parse_number(value)
    assert number == float(value)
    assert parse_number(number.text) == float(value)
    assert parse_number(repr(value)) == float(value)
    assert parse_number(plain(number)) == float(value)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_fractions_are_the_nearest_double_and_stay_fractions(a: int, b: int) -> None:
    number = parse_number(f"{a}/{b}")
    assert number == a / b
    assert plain(number) == f"{a}/{b}"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=8) | st.text("0123456789.eE+-/ ", max_size=10))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        number = parse_number(text)
    except ValueError:
        return
    assert math.isfinite(number)
    assert parse_number(number.text) == number


@pytest.mark.parametrize(
    ("text", "expected"), [("10", 10), ("1.0", 1.0), ("1e1", 10.0), ("8/255", "8/255"), ("0.1", 0.1), ("1e-3", 0.001), ("-4", -4)]
)
def test_plain_form_is_an_integer_only_where_one_was_typed(text: str, expected: float | str) -> None:
    value = plain(parse_number(text))
    assert (value, type(value)) == (expected, type(expected))
    assert json.loads(json.dumps(value)) == expected


def test_a_number_is_a_float_that_survives_copies() -> None:
    number = parse_number("8/255")
    for other in (pickle.loads(pickle.dumps(number)), copy.deepcopy(number), copy.copy(number)):
        assert (other, other.text) == (number, "8/255")
    assert number * 255 == pytest.approx(8)
    assert Number(0.25).text == "0.25"


def test_the_json_schema_takes_the_same_texts() -> None:
    form = Recipe.model_json_schema()["$defs"]["Optim"]["properties"]["lr"]["anyOf"]
    assert {"type": "number"} in [{"type": part["type"]} for part in form]
    pattern = re.compile(next(part["pattern"] for part in form if part["type"] == "string"))
    assert all(pattern.search(text) for text in TYPED)
    assert not any(pattern.search(text) for text in ("", "8/", "fast", "0x10", "1_000", "8/255/2"))
