"""The fields of events that a client wants to see.

Source: Client-Server API, "Filtering" (`event_fields`); Appendices, "Dot-separated property paths".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from homeserver.protocol.strict_json import JsonObject

FieldPath: TypeAlias = tuple[str, ...]
"""Names of properties, from the outermost inwards."""

_PART: Final = re.compile(r"(?:[^.\\]|\\[.\\]|\\)*")
_ESCAPED: Final = re.compile(r"\\([.\\])")


def parse_field_path(text: str) -> FieldPath:
    r"""The names of a dot-separated path, in which `\.` is a dot and `\\` a backslash within a name."""
    parts, position = [], 0
    while True:
        found = _PART.match(text, position)
        assert found is not None
        parts.append(_ESCAPED.sub(r"\1", found[0]))
        position = found.end() + 1
        if position > len(text):
            return tuple(parts)


def only_fields(event: JsonObject, paths: Sequence[FieldPath]) -> JsonObject:
    """A copy of an event with nothing but what the paths lead to; those that lead nowhere add nothing."""
    picked: JsonObject = {}
    for path in paths:
        source: Any = event
        for name in path:
            if not isinstance(source, dict) or name not in source:
                break
            source = source[name]
        else:
            _put(picked, path, source)
    return picked


def _put(target: JsonObject, path: FieldPath, value: Any) -> None:
    for name in path[:-1]:
        target = target.setdefault(name, {})
    if isinstance(value, dict):
        target[path[-1]] = {**target.get(path[-1], {}), **value}
    else:
        target[path[-1]] = value
