"""Reading JSON strictly: what two parsers could read in two ways is refused.

Source: Appendices, "Canonical JSON"; RFC 8259; the limits are ours.
"""

from __future__ import annotations

import json
import math
from itertools import accumulate
from typing import Any, Final, TypeAlias

from homeserver.protocol.errors import BadJson

JsonObject: TypeAlias = dict[str, Any]

MAX_DEPTH: Final = 64
"""How many objects and arrays may stand inside each other, the outermost included."""

MAX_BODY_DEPTH: Final = 200
"""The same for what servers tell each other: one event that is nested deeper spoils no other in its body."""

_BLANKS: Final = " \t\n\r"
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one deeper, one back
_NOT_STRUCTURE: Final = bytes(byte for byte in range(256) if byte not in b'[]{}"')


class MinusZero(int):
    """The literal -0: zero, where any number is allowed; canonical JSON refuses it, as it refuses floats."""


def parse_json(data: bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """The value that a JSON text in UTF-8 stands for.

    Raises BadJson, with `syntax` for what is no JSON at all: other syntax, bad UTF-8, a byte order mark,
    trailing bytes, NaN and Infinity; without it for JSON that may not be: a key twice in one object, half
    of a surrogate pair, a number that fits no double or has thousands of digits, deeper than `max_depth`.

    Numbers with a fraction or exponent are floats. -0 is a MinusZero: an integer 0 would no longer show what
    was sent.
    """
    if data.count(b"[") + data.count(b"{") > max_depth and _depth(data) > max_depth:
        raise BadJson(f"JSON nested more than {max_depth} deep")
    try:
        text = data.decode().lstrip(_BLANKS)
    except UnicodeDecodeError:
        raise BadJson("not UTF-8", syntax=True) from None
    decoder = _MINUS_ZERO_DECODER if b"-0" in data else _DECODER
    try:
        value, end = decoder.raw_decode(text)
    except json.JSONDecodeError as error:
        raise BadJson(f"not JSON: {error.msg}", syntax=True) from None
    except ValueError:  # the interpreter's limit for the digits of an integer
        raise BadJson("an integer with thousands of digits") from None
    if end != len(text) and text[end:].strip(_BLANKS):
        raise BadJson("not JSON: more follows the value", syntax=True)
    if b"\\ud" in data or b"\\uD" in data:
        _refuse_lone_surrogates(value)
    return value


def parse_json_object(data: bytes, *, max_depth: int = MAX_DEPTH) -> JsonObject:
    """As parse_json, for a text that must be an object. Raises BadJson."""
    value = parse_json(data, max_depth=max_depth)
    if not isinstance(value, dict):
        raise BadJson("not a JSON object")
    return value


def _depth(data: bytes) -> int:
    """How deep the brackets outside of strings go; at least as deep as a parser gets in what is no JSON.

    Only brackets and quotes are kept: after the escapes have gone, every other piece between quotes is a
    string. Removing the quotes of an empty string, or those between two strings, moves no bracket in or out.
    """
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = data.translate(_STEPS, _NOT_STRUCTURE).replace(b'""', b"")
    brackets = b"".join(structure.split(b'"')[::2])
    return max(accumulate(memoryview(brackets).cast("b")), default=0)


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadJson("half of a surrogate pair") from None


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise BadJson("a key stands twice in one object")
    return result


def _float(literal: str) -> float:
    value = float(literal)
    if math.isinf(value):
        raise BadJson("a number beyond the range of a double")
    return value


def _integer_or_minus_zero(literal: str) -> int:
    return MinusZero() if literal == "-0" else int(literal)


def _constant(name: str) -> Any:
    raise BadJson(f"not JSON: {name}", syntax=True)


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)
_MINUS_ZERO_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=_float,
    parse_constant=_constant,
    parse_int=_integer_or_minus_zero,
)
