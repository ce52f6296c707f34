"""Canonical JSON: the one form of a value in bytes, over which hashes and signatures are made.

Events up to room version 5 may hold numbers that have no canonical form. For these it is what the first
servers made of them, since all have to arrive at the same bytes.
Source: Appendices, "Canonical JSON"; "Room Versions", section "Canonical JSON" of each version.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

import orjson
from canonicaljson import encode_canonical_json

from homeserver.protocol.errors import BadJson
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import MAX_DEPTH, JsonObject, MinusZero

MAX_INTEGER: Final = 2**53 - 1

_LARGE_INTEGER: Final = re.compile(rb"[0-9]{19}")


def canonical_json(value: JsonObject | orjson.Fragment) -> bytes:
    """The canonical JSON of a value that check_canonical allows.

    orjson sorts keys by their UTF-8 bytes, which is the order of code points, and escapes what must be
    escaped in the way that is prescribed. Raises BadJson for what has no JSON at all; of other values
    that are not allowed (floats, say) it makes JSON that is not canonical.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise BadJson(f"no canonical JSON: {error}") from None


def canonical_event(version: RoomVersion, event: JsonObject) -> bytes:
    """The canonical JSON of an event, or of a part of it, that check_event_json allows. Raises BadJson."""
    if version.strict_json:
        return canonical_json(event)
    try:
        return encode_canonical_json(event)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadJson(f"no canonical JSON: {error}") from None


def canonical_fragment(version: RoomVersion, event: JsonObject) -> orjson.Fragment:
    """An event as a part of a request, of which canonical_json makes just what is signed. Raises BadJson.

    Whoever checks the signature makes the JSON of the request anew, with all its numbers.
    """
    return orjson.Fragment(canonical_event(version, event))


def read_json(data: bytes) -> Any:
    """The value of JSON that was checked when it came; integers stay what they are, of whatever size."""
    return json.loads(data) if _LARGE_INTEGER.search(data) else orjson.loads(data)


def write_json(value: object) -> bytes:
    """Some JSON of a value out of an event. Unlike orjson it takes the integers of any size in old rooms."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return encode_canonical_json(value)


def check_event_json(version: RoomVersion, value: Any, *, max_depth: int = MAX_DEPTH) -> None:
    """Check that a value may stand in an event of a room version.

    Up to version 5 that is any number that has JSON. Raises BadJson, as check_canonical.
    """
    check_canonical(value, max_depth=max_depth, any_number=not version.strict_json)


def check_canonical(value: Any, *, max_depth: int = MAX_DEPTH, any_number: bool = False) -> None:
    """Check that a value has canonical JSON.

    Raises BadJson for floats, integers beyond ±(2^53 - 1), keys that are no strings, halves of surrogate
    pairs, objects and arrays more than `max_depth` deep, and whatever JSON does not have.
    `any_number`: floats and other integers are let through.
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
                if not -MAX_INTEGER <= item <= MAX_INTEGER and not any_number:
                    raise BadJson("an integer beyond 53 bits")
            elif any_number and (kind is MinusZero or (kind is float and math.isfinite(item))):
                pass
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
