"""Hashes of events, and the event and room IDs that are made of them.

Source: Server-Server API, "Calculating the content hash for an event", "Calculating the reference hash
for an event"; "Room Versions", sections "Event IDs" and "Room IDs".
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from hashlib import sha256
from typing import Final

from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.errors import InvalidEvent, InvalidIdentifier
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import decode_base64, encode_url_safe_base64

_NOT_IN_CONTENT_HASH: Final = frozenset({"unsigned", "signatures", "hashes"})
_HASH_SIZE: Final = 32
_HASH_ID: Final = re.compile(r"\$[A-Za-z0-9_\-]{42}[AEIMQUYcgkosw048]\Z")  # the last character has 4 bits
_FROM_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")


def content_hash_bytes(event: JsonObject) -> bytes:
    """The canonical JSON that the content hash of an event is made of. Raises BadJson."""
    return canonical_json({key: value for key, value in event.items() if key not in _NOT_IN_CONTENT_HASH})


def content_hash(event: JsonObject) -> bytes:
    """The SHA-256, 32 bytes, of a whole event without its hashes, signatures and unsigned. Raises BadJson."""
    return sha256(content_hash_bytes(event)).digest()


def has_valid_content_hash(event: JsonObject) -> bool:
    """Whether hashes.sha256 is the content hash of this event.

    Raises InvalidEvent where there is no such hash, or it is not base64, and BadJson.
    """
    hashes = event.get("hashes")
    claimed = decode_base64(hashes.get("sha256")) if isinstance(hashes, dict) else None
    if claimed is None:
        raise InvalidEvent("hashes.sha256 is no hash")
    return claimed == content_hash(event)


def reference_bytes(version: RoomVersion, event: JsonObject) -> bytes:
    """The canonical JSON of the redacted event, `hashes` included and `signatures` not.

    The reference hash and the signatures of servers are made of it. Raises BadJson, InvalidEvent.
    """
    redacted = redact(version, event)
    redacted.pop("signatures", None)
    redacted.pop("unsigned", None)
    return canonical_json(redacted)


def reference_hash(version: RoomVersion, event: JsonObject) -> bytes:
    """The SHA-256, 32 bytes, that names an event. Raises BadJson, InvalidEvent."""
    return sha256(reference_bytes(version, event)).digest()


def event_id_of(version: RoomVersion, event: JsonObject) -> EventId:
    """The event ID: `$` and the reference hash in URL-safe unpadded base64. Raises BadJson, InvalidEvent."""
    return EventId("$" + encode_url_safe_base64(reference_hash(version, event)))


def room_id_of_create(event_id: EventId) -> RoomId:
    """The ID of the room that a create event makes, where room IDs are made of it."""
    return RoomId("!" + event_id[1:])


def is_hash_event_id(event_id: str) -> bool:
    """Whether an event ID is a hash in the one text that stands for it: no stray bits at its end."""
    return _HASH_ID.match(event_id) is not None


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
