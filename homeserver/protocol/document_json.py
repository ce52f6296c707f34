"""The JSON of documents that people write: read as strictly as events, but naming the place of a mistake."""

from __future__ import annotations

import json
from typing import Any, Final

from homeserver.protocol.errors import BadDocument, BadJson
from homeserver.protocol.strict_json import MAX_DEPTH, JsonObject, parse_json_object

_DOCUMENT_DEPTH: Final = 2
"""How much deeper than an event itself a document is that holds a list of events."""


def parse_document(data: bytes) -> JsonObject:
    """The JSON object of a document, read strictly. Raises BadDocument."""
    try:
        return parse_json_object(data, max_depth=MAX_DEPTH + _DOCUMENT_DEPTH)
    except BadJson as error:
        where = _where_json_breaks(data) if error.syntax else _where_a_key_stands_twice(data)
        raise BadDocument(where, str(error)) from None


def _where_json_breaks(data: bytes) -> str:
    try:
        json.loads(data.decode())
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError):
        pass
    return ""


class _Twice(dict[str, Any]):
    """An object in which a key stands twice."""

    key: str


def _marked(pairs: list[tuple[str, Any]]) -> JsonObject:
    seen: JsonObject = {}
    for key, value in pairs:
        if key in seen:
            twice = _Twice(pairs)
            twice.key = key
            return twice
        seen[key] = value
    return seen


def _where_a_key_stands_twice(data: bytes) -> str:
    """The path of the key that an object has twice, "" where it is something else that is wrong."""
    try:
        stack: list[tuple[str, Any]] = [("", json.loads(data, object_pairs_hook=_marked))]
    except (ValueError, RecursionError):
        return ""
    while stack:
        where, value = stack.pop()
        if isinstance(value, _Twice):
            return f"{where}.{value.key}".removeprefix(".")
        if isinstance(value, dict):
            stack.extend((f"{where}.{key}".removeprefix("."), below) for key, below in value.items())
        elif isinstance(value, list):
            stack.extend((f"{where}[{index}]", below) for index, below in enumerate(value))
    return ""
