"""Hashes of events, and the event and room IDs that are made of them.

Source: Server-Server API, "Calculating the content hash for an event", "Calculating the reference hash
for an event"; "Room Versions", sections "Event IDs" and "Room IDs".
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from hashlib import sha256
from typing import Final

from homeserver.protocol.canonical_json import canonical_event
from homeserver.protocol.errors import InvalidEvent, InvalidIdentifier
from homeserver.protocol.identifiers import (
    EventId,
    RoomId,
    ServerName,
    parse_event_id,
    parse_server_name,
    server_name_of,
)
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import EventIdFormat, RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import decode_base64, encode_base64, encode_url_safe_base64

_NOT_IN_CONTENT_HASH: Final = frozenset({"unsigned", "signatures", "hashes"})
_HASH_SIZE: Final = 32
_HASH_ID: Final = re.compile(r"\$[A-Za-z0-9_\-]{42}[AEIMQUYcgkosw048]\Z")  # the last character has 4 bits
_FROM_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")


def content_hash_bytes(version: RoomVersion, event: JsonObject) -> bytes:
    """The canonical JSON that the content hash of an event is made of. Raises BadJson."""
    hashed = {key: value for key, value in event.items() if key not in _NOT_IN_CONTENT_HASH}
    return canonical_event(version, hashed)


def content_hash(version: RoomVersion, event: JsonObject) -> bytes:
    """The SHA-256, 32 bytes, of a whole event without its hashes, signatures and unsigned. Raises BadJson."""
    return sha256(content_hash_bytes(version, event)).digest()


def has_valid_content_hash(version: RoomVersion, event: JsonObject) -> bool:
    """Whether hashes.sha256 is the content hash of this event.

    Raises InvalidEvent where there is no such hash, or it is not base64, and BadJson.
    """
    hashes = event.get("hashes")
    claimed = decode_base64(hashes.get("sha256")) if isinstance(hashes, dict) else None
    if claimed is None:
        raise InvalidEvent("hashes.sha256 is no hash")
    return claimed == content_hash(version, event)


def reference_bytes(version: RoomVersion, event: JsonObject) -> bytes:
    """The canonical JSON of the redacted event, `hashes` included and `signatures` not.

    The reference hash and the signatures of servers are made of it. Raises BadJson, InvalidEvent.
    """
    redacted = redact(version, event)
    redacted.pop("signatures", None)
    redacted.pop("unsigned", None)
    return canonical_event(version, redacted)


def reference_hash(version: RoomVersion, event: JsonObject) -> bytes:
    """The SHA-256, 32 bytes, that names an event. Raises BadJson, InvalidEvent."""
    return sha256(reference_bytes(version, event)).digest()


def reference_hash_text(version: RoomVersion, event: JsonObject) -> str:
    """The hash that stands beside a reference to an event, in base64. Raises BadJson, InvalidEvent."""
    return encode_base64(reference_hash(version, event))


def event_id_of(version: RoomVersion, event: JsonObject) -> EventId:
    """The event ID: `$` and the reference hash in unpadded base64, URL-safe from version 4.

    In versions 1 and 2 it is what the event says. Raises BadJson, and InvalidEvent, also if it says none.
    """
    match version.event_id_format:
        case EventIdFormat.URL_SAFE_BASE64:
            return EventId("$" + encode_url_safe_base64(reference_hash(version, event)))
        case EventIdFormat.BASE64:
            return EventId("$" + encode_base64(reference_hash(version, event)))
        case EventIdFormat.CHOSEN:
            return _chosen_id(event.get("event_id"))


def _chosen_id(event_id: object) -> EventId:
    """An event ID that the sender's server has chosen: it names that server. Raises InvalidEvent."""
    if not isinstance(event_id, str):
        raise InvalidEvent("event_id is no string")
    try:
        parse_server_name(server_name_of(parse_event_id(event_id)))
    except InvalidIdentifier as error:
        raise InvalidEvent(f"event_id: {error}") from None
    return EventId(event_id)


def chosen_event_id(version: RoomVersion, event: JsonObject, server_name: ServerName) -> EventId:
    """An ID for an event of ours that has none yet, where servers choose them: never twice the same.

    It is made of the event, with its place in the room and its time. Raises BadJson.
    """
    digest = sha256(canonical_event(version, event)).digest()
    return EventId(f"${encode_url_safe_base64(digest)}:{server_name}")


def room_id_of_create(event_id: EventId) -> RoomId:
    """The ID of the room that a create event makes, where room IDs are made of it."""
    return RoomId("!" + event_id[1:])


def encode_event_id(event_id: EventId) -> bytes:
    """The form of an event ID that is stored: the 32 bytes of its hash.

    Any other text is its own bytes, which are never 32: a NUL is added to those that would be.
    Raises InvalidIdentifier for a text with a NUL or half of a surrogate pair.
    """
    if _HASH_ID.match(event_id):
        return a2b_base64(event_id[1:].encode().translate(_FROM_URL_SAFE) + b"=")
    try:
        data = event_id.encode()
    except UnicodeEncodeError:
        raise InvalidIdentifier(f"{event_id!r} is not an event ID") from None
    if b"\0" in data:
        raise InvalidIdentifier(f"{event_id!r} is not an event ID")
    return data + b"\0" if len(data) == _HASH_SIZE else data


def decode_event_id(data: bytes) -> EventId:
    """The event ID of which encode_event_id made these bytes. Raises InvalidIdentifier for other bytes."""
    if len(data) == _HASH_SIZE:
        return EventId("$" + encode_url_safe_base64(data))
    try:
        event_id = EventId(data.decode())
    except UnicodeDecodeError:
        raise InvalidIdentifier("stored bytes are not an event ID") from None
    if len(data) == _HASH_SIZE + 1:
        event_id = EventId(event_id.removesuffix("\0"))
    return event_id
