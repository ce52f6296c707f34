"""Canonical JSON: the one form of a value in bytes, over which hashes and signatures are made.

Source: Appendices, "Canonical JSON".
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from homeserver.protocol.errors import BadJson
from homeserver.protocol.strict_json import MAX_DEPTH, JsonObject

MAX_INTEGER: Final = 2**53 - 1


def canonical_json(value: JsonObject) -> bytes:
    """The canonical JSON of a value that check_canonical allows.

    orjson sorts keys by their UTF-8 bytes, which is the order of code points, and escapes what must be
    escaped in the way that is prescribed. Raises BadJson for what has no JSON at all; of other values
    that are not allowed (floats, say) it makes JSON that is not canonical.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise BadJson(f"no canonical JSON: {error}") from None


def check_canonical(value: Any, *, max_depth: int = MAX_DEPTH) -> None:
    """Check that a value may stand in an event of room version 6 or later.

    Raises BadJson for floats, integers beyond ±(2^53 - 1), keys that are no strings, halves of surrogate
    pairs, objects and arrays more than `max_depth` deep, and whatever JSON does not have.
    """
    level = [value]
    for depth in range(max_depth + 1):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                if not item.isascii():
                    _check_text(item)
            elif kind is dict or kind is list:
                if depth == max_depth:
                    raise BadJson(f"nested more than {max_depth} deep")
                if kind is dict:
                    _check_keys(item)
                    below.extend(item.values())
                else:
                    below.extend(item)
            elif kind is int:
                if not -MAX_INTEGER <= item <= MAX_INTEGER:
                    raise BadJson("an integer beyond 53 bits")
            elif item is not None and kind is not bool:
                raise BadJson(f"a {kind.__name__} cannot be in canonical JSON")
        if not below:
            return
        level = below


def _check_keys(value: JsonObject) -> None:
    try:
        keys = "".join(value)
    except TypeError:
        raise BadJson("a key that is no string") from None
    if not keys.isascii():
        _check_text(keys)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadJson("half of a surrogate pair") from None
