from __future__ import annotations

from typing import Any

import pytest
from canonicaljson import encode_canonical_json
from hypothesis import example, given

from homeserver.protocol.canonical_json import MAX_INTEGER, canonical_json, check_canonical
from homeserver.protocol.errors import BadJson
from homeserver.protocol.strict_json import JsonObject, parse_json
from tests.protocol.json_values import any_values, canonical_objects


@pytest.mark.invariant("SEC-JSON-1")
@given(canonical_objects())
@example({"\uffff": 1, "\U00010000": 2, "\ufb01": 3, "e": 4, "E": 5, "": 6, "é": 7})
@example({"".join(map(chr, range(0x100))): "".join(map(chr, range(0x100)))})
@example({"a": MAX_INTEGER, "b": -MAX_INTEGER, "c": [True, False, None, 0]})
def test_sec_json_1_canonical_json_is_that_of_a_second_implementation(value: JsonObject) -> None:
    check_canonical(value)
    assert canonical_json(value) == encode_canonical_json(value)
    assert parse_json(canonical_json(value)) == value


@pytest.mark.parametrize(
    ("data", "canonical"),
    [
        (b"{}", b"{}"),
        (b'{"one": 1, "two": "Two"}', b'{"one":1,"two":"Two"}'),
        (b'{"b": "2", "a": "1"}', b'{"a":"1","b":"2"}'),
        ('{"本": 2, "日": 1}'.encode(), '{"日":1,"本":2}'.encode()),
        (b'{"a": "\\u65E5"}', '{"a":"日"}'.encode()),
        (b'{"a": null}', b'{"a":null}'),
    ],
)
def test_the_examples_of_the_specification(data: bytes, canonical: bytes) -> None:
    """Source: Appendices, "Canonical JSON", "Examples"."""
    assert canonical_json(parse_json(data)) == canonical


@pytest.mark.invariant("SEC-JSON-1")
@pytest.mark.parametrize(
    "value",
    [
        1.0,
        -0.0,
        float("nan"),
        float("inf"),
        2**53,
        -(2**53),
        2**64,
        "\ud800",
        {"\udc00": 1},
        {"\ud83d": {}, "\ude00x": {}},
        {1: 2},
        {None: 1},
        (1, 2),
        b"x",
        {"a"},
        [[[0.5]]],
    ],
)
def test_sec_json_1_values_that_events_may_not_hold_are_refused(value: Any) -> None:
    for place in (value, [value], {"a": {"b": [0, value]}}):
        with pytest.raises(BadJson):
            check_canonical(place)


@pytest.mark.parametrize("value", [{"a": 2**64}, {"a": "\ud800"}, {"\ud800": 1}, {1: 2}, {"a": {"b"}}])
def test_a_value_without_json_is_refused(value: Any) -> None:
    with pytest.raises(BadJson):
        canonical_json(value)


def test_a_circle_is_refused() -> None:
    circle: JsonObject = {}
    circle["a"] = [circle]
    with pytest.raises(BadJson):
        check_canonical(circle)
    with pytest.raises(BadJson):
        canonical_json(circle)


@given(any_values())
def test_no_value_raises_anything_but_bad_json(value: Any) -> None:
    try:
        check_canonical(value)
    except BadJson:
        return
    assert canonical_json({"": value}) == encode_canonical_json({"": value})
