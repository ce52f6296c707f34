from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from homeserver.protocol.canonical_json import check_canonical
from homeserver.protocol.errors import BadJson
from homeserver.protocol.strict_json import MAX_DEPTH, parse_json, parse_json_object
from tests.protocol.json_values import canonical_values

NOT_JSON = {
    "nothing": b"",
    "blanks": b" \n",
    "trailing bytes": b"{} x",
    "two values": b"{}{}",
    "trailing NUL": b"{}\0",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "bad UTF-8": b'"\xff"',
    "overlong UTF-8": b'"\xc0\x80"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "NaN": b'{"a":NaN}',
    "Infinity": b"[Infinity]",
    "-Infinity": b"[-Infinity]",
    "leading zero": b"[01]",
    "leading plus": b"[+1]",
    "hexadecimal": b"[0x10]",
    "underscore": b"[1_000]",
    "no fraction": b"[1.]",
    "other digits": "[١]".encode(),
    "single quotes": b"{'a':1}",
    "no-break space": "\xa0{}".encode(),
    "form feed": b"\f{}",
    "trailing comma": b"[1,]",
    "comment": b"[1/**/]",
    "control character": b'"a\nb"',
    "unknown escape": b'"\\x41"',
    "short escape": b'"\\u12"',
    "unclosed": b'{"a":[1',
    "no key": b"{1:2}",
}
FORBIDDEN = {
    "duplicate key": b'{"a":1,"b":2,"a":1}',
    "duplicate key below": b'[{"x":{"a":1,"a":2}}]',
    "duplicate key, escaped": b'{"a":1,"\\u0061":2}',
    "high surrogate": b'{"a":"\\ud83d"}',
    "low surrogate": b'["\\uDE00"]',
    "surrogates reversed": b'["\\ude00\\ud83d"]',
    "surrogate in a key": b'{"\\uD83D":1}',
    "number beyond doubles": b"[1e999]",
    "integer of a million digits": b"[" + b"9" * 1_000_000 + b"]",
    "such an integer beside -0": b"[-0," + b"9" * 1_000_000 + b"]",
}


@pytest.mark.invariant("SEC-JSON-1")
@pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_sec_json_1_what_is_no_json_is_refused_as_such(data: bytes) -> None:
    with pytest.raises(BadJson) as caught:
        parse_json(data)
    assert caught.value.syntax


@pytest.mark.invariant("SEC-JSON-1")
@pytest.mark.parametrize("data", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_sec_json_1_json_that_two_parsers_could_read_in_two_ways_is_refused(data: bytes) -> None:
    with pytest.raises(BadJson) as caught:
        parse_json(data)
    assert not caught.value.syntax


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b' \t\r\n{"a" : [1, 2.5, -1e3, true, null]} \n', {"a": [1, 2.5, -1000.0, True, None]}),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\\\ud83d"', "\\ud83d"),
        (b"12345678901234567890123", 12345678901234567890123),
        (b'{"a":"-0","b":-0.5,"c":-10}', {"a": "-0", "b": -0.5, "c": -10}),
        (b'"\\u0000\x7f"', "\0\x7f"),
        (b"{}", {}),
    ],
)
def test_other_json_is_read(data: bytes, value: Any) -> None:
    assert parse_json(data) == value


@pytest.mark.invariant("SEC-JSON-1")
@pytest.mark.parametrize("data", [b"-0", b'{"a":[-0]}', b"-0.0", b"0.0", b"1E2", b"9007199254740992"])
def test_sec_json_1_numbers_that_events_may_not_hold_are_seen_after_parsing(data: bytes) -> None:
    with pytest.raises(BadJson):
        check_canonical(parse_json(data))


@pytest.mark.invariant("SEC-JSON-1")
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":', b'{"":{"\\"]}":'])
def test_sec_json_1_nesting_is_counted_before_parsing(opening: bytes) -> None:
    levels = opening.count(b"[") + opening.count(b"{")
    closing = bytes({91: 93, 123: 125}[byte] for byte in reversed(opening) if byte in b"[{")

    def nested(times: int) -> bytes:
        return opening * times + b"0" + closing * times

    allowed = MAX_DEPTH // levels
    value = parse_json(nested(allowed))
    check_canonical(value)
    with pytest.raises(BadJson):
        parse_json(nested(allowed + 1))
    with pytest.raises(BadJson):
        check_canonical([value])
    assert parse_json(nested(allowed + 1), max_depth=2 * MAX_DEPTH)


@pytest.mark.parametrize("data", [b"[" * 1_000_000, b'{"a":' * 100_000, b'["' * 100_000, b"[]" * 100_000])
def test_a_body_of_brackets_is_refused_without_recursion(data: bytes) -> None:
    with pytest.raises(BadJson):
        parse_json(data)


def test_brackets_in_strings_and_beside_each_other_are_no_nesting() -> None:
    value = {"a": ["[" * 100, '"[{\\' * 100, "\\", {}], "b": [[] for _ in range(100)]}
    assert parse_json(json.dumps(value).encode()) == value


def test_a_body_must_be_an_object_where_one_is_needed() -> None:
    assert parse_json_object(b'{"a":1}') == {"a": 1}
    with pytest.raises(BadJson) as caught:
        parse_json_object(b"[]")
    assert not caught.value.syntax


@given(st.binary() | st.text(alphabet='[]{}",:\\u0-1e.atrue ').map(str.encode))
@example(b'"\\"[" ' * 40)
def test_what_is_read_is_what_another_strict_parser_reads(data: bytes) -> None:
    try:
        value = parse_json(data)
    except BadJson as error:
        if error.syntax:
            with pytest.raises(orjson.JSONDecodeError):
                orjson.loads(data)
    else:
        assert orjson.loads(data) == value


@given(canonical_values(), st.booleans())
def test_every_value_that_is_written_is_read_again(value: Any, ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse_json(data) == value
