"""Redaction: what remains of an event when its contents are taken away.

Source: "Room Versions", section "Redactions" of each version.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Final

from homeserver.protocol.errors import InvalidEvent
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject

_NO_PATHS: Final[frozenset[tuple[str, ...]]] = frozenset()


def redact(version: RoomVersion, event: JsonObject) -> JsonObject:
    """A redacted copy of an event, `signatures` and `hashes` kept; the event itself stays as it is.

    Raises InvalidEvent for an event without an object as content.
    """
    content = event.get("content")
    if not isinstance(content, dict):
        raise InvalidEvent("content is no object")
    keeps = version.redaction_keeps
    redacted = {key: value for key, value in event.items() if key in keeps}
    event_type = event.get("type")
    paths = (
        version.redaction_keeps_content.get(event_type, _NO_PATHS) if type(event_type) is str else _NO_PATHS
    )
    if paths is not None:
        redacted["content"] = _redact_content(content, paths)
    return redacted


def _redact_content(content: JsonObject, paths: Set[tuple[str, ...]]) -> JsonObject:
    kept: JsonObject = {}
    for path in paths:
        _keep(content, kept, path)
    return kept


def _keep(source: JsonObject, kept: JsonObject, path: tuple[str, ...]) -> None:
    """Copy what a path leads to. An object on the way stays, even if empty; another value there goes."""
    key = path[0]
    if key not in source:
        return
    value: Any = source[key]
    if len(path) == 1:
        kept[key] = value
    elif isinstance(value, dict):
        _keep(value, kept.setdefault(key, {}), path[1:])
