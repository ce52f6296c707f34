"""Pdu: one event of a room, as servers exchange it. Building one, checking its format, showing it to clients.

Source: "Room Versions", section "Event format" of each version; Client-Server API, "Size limits".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, TypeAlias

from homeserver.protocol.canonical_json import MAX_INTEGER, canonical_json, check_canonical
from homeserver.protocol.errors import EventTooLarge, FieldTooLong, InvalidEvent, InvalidIdentifier
from homeserver.protocol.event_hashes import (
    content_hash_bytes,
    event_id_of,
    has_valid_content_hash,
    room_id_of_create,
)
from homeserver.protocol.identifiers import (
    EventId,
    RoomId,
    UserId,
    parse_event_id,
    parse_room_id,
    parse_user_id,
    server_name_of,
)
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import MAX_DEPTH, JsonObject
from homeserver.protocol.unpadded_base64 import encode_base64

StateKey: TypeAlias = tuple[str, str]
"""What names a piece of room state: (event type, state key)."""

MAX_EVENT_BYTES: Final = 65536
MAX_FIELD_BYTES: Final = 255
MAX_PREV_EVENTS: Final = 20
MAX_AUTH_EVENTS: Final = 10
MAX_KEY_ID_BYTES: Final = 64
"""The longest key ID of ours; signing keys with a longer one are refused."""

_HASHES_BYTES: Final = len(b'"hashes":{"sha256":""},') + 43
_SIGNATURE_BYTES: Final = len(b'"signatures":{"":{"":""}},') + MAX_KEY_ID_BYTES + 86


@dataclass(frozen=True, slots=True, eq=False)
class Pdu:
    """An event whose format was checked. Two Pdus are equal only when they are the same object.

    `json` is the whole event in its room version's format (in version 12 a create event has no room_id
    there), without `unsigned`; an event of ours has no `signatures` until it leaves this server. It and
    all in it are never changed after the Pdu was made.
    """

    event_id: EventId
    room_id: RoomId
    type: str
    sender: UserId
    state_key: str | None
    content: JsonObject
    prev_events: tuple[EventId, ...]
    auth_events: tuple[EventId, ...]
    depth: int
    origin_server_ts: int
    json: JsonObject

    @property
    def key(self) -> StateKey:
        """(type, state key) of a state event."""
        assert self.state_key is not None
        return self.type, self.state_key

    @property
    def membership(self) -> object:
        """content.membership, of any JSON type; None where it is missing."""
        return self.content.get("membership")


@dataclass(frozen=True, slots=True)
class EventDraft:
    """What a local user wants to say: an event before it has a place in its room."""

    type: str
    content: JsonObject
    state_key: str | None = None


def parse_pdu(
    version: RoomVersion, event: JsonObject, *, event_id: EventId | None = None, pushed: bool = True
) -> Pdu:
    """Check the format and size of an event of another server, and make it a Pdu.

    The event ID is computed; `event_id` is what it must come out as, for an event that was asked for.
    Where the content hash does not fit, the Pdu is the redacted event, under the same ID: so an event
    that somebody altered cannot be used by mistake. Signatures are not checked here.

    `pushed` is False for history that we asked for: 20 previous and 10 auth events are no limit there.
    What peers write into `unsigned` is left out, of whatever shape: it is no part of the event, and its
    size does not count.

    Raises InvalidEvent, EventTooLarge and BadJson.
    Source: Server-Server API, "Checks performed on receipt of a PDU", "Validating hashes and signatures on
    received events".
    """
    if not isinstance(event, dict):
        raise InvalidEvent("an event is an object")
    if "unsigned" in event:
        event = {key: value for key, value in event.items() if key != "unsigned"}
    check_canonical(event)
    event_type = _text(event, "type")
    if "state_key" in event:
        _text(event, "state_key")
    if type(event.get("content")) is not dict:
        raise InvalidEvent("content is no object")
    _check_sender(_text(event, "sender"))
    _check_room_id(version, event, event_type)
    _check_event_ids(event, "prev_events", MAX_PREV_EVENTS if pushed else None)
    _check_event_ids(event, "auth_events", MAX_AUTH_EVENTS if pushed else None)
    if _integer(event, "depth") < 0:
        raise InvalidEvent("depth is negative")
    _integer(event, "origin_server_ts")
    _check_signatures(event.get("signatures", {}))
    if len(canonical_json(event)) > MAX_EVENT_BYTES:
        raise EventTooLarge(f"the event has more than {MAX_EVENT_BYTES} bytes")
    computed = event_id_of(version, event)
    if event_id is not None and computed != event_id:
        raise InvalidEvent(f"the event is {computed}, not {event_id}")
    if not has_valid_content_hash(event):
        event = redact(version, event)
    room_id = RoomId(event["room_id"]) if "room_id" in event else room_id_of_create(computed)
    return stored_pdu(room_id, computed, event)


def stored_pdu(room_id: RoomId, event_id: EventId, event: JsonObject) -> Pdu:
    """A Pdu of an event that was checked before: one out of our own database."""
    return Pdu(
        event_id=event_id,
        room_id=room_id,
        type=event["type"],
        sender=event["sender"],
        state_key=event.get("state_key"),
        content=event["content"],
        prev_events=tuple(event["prev_events"]),
        auth_events=tuple(event["auth_events"]),
        depth=event["depth"],
        origin_server_ts=event["origin_server_ts"],
        json=event,
    )


def build_pdu(
    version: RoomVersion,
    *,
    room_id: RoomId | None,
    draft: EventDraft,
    sender: UserId,
    prev_events: Sequence[EventId],
    auth_events: Sequence[EventId],
    depth: int,
    origin_server_ts: int,
) -> Pdu:
    """A new event of this server, hashed but not signed.

    `room_id` is None for a create event of a version whose room IDs are made of it, and only there.
    `depth` is kept within what events may say. The size limit counts a signature of ours, with the
    longest key ID we use, since an event is signed only when it first leaves this server.

    Raises InvalidEvent, EventTooLarge and BadJson for a draft that cannot become an event.
    Source: Server-Server API, "Adding hashes and signatures to outgoing events".
    """
    check_canonical(draft.content, max_depth=MAX_DEPTH - 1)
    if not isinstance(draft.content, dict):
        raise InvalidEvent("content is no object")
    if (room_id is None) != (version.room_id_is_create_hash and draft.type == "m.room.create"):
        raise InvalidEvent("only a create event is without a room ID, and only where its hash becomes one")
    if len(prev_events) > MAX_PREV_EVENTS or len(auth_events) > MAX_AUTH_EVENTS:
        raise InvalidEvent("too many prev_events or auth_events")
    event: JsonObject = {
        "auth_events": list(auth_events),
        "content": draft.content,
        "depth": min(depth, MAX_INTEGER),
        "origin_server_ts": origin_server_ts,
        "prev_events": list(prev_events),
        "sender": sender,
        "type": draft.type,
    }
    _check_text("type", draft.type)
    if room_id is not None:
        event["room_id"] = room_id
    if draft.state_key is not None:
        _check_text("state_key", draft.state_key)
        event["state_key"] = draft.state_key
    hashed = content_hash_bytes(event)
    size_bytes = len(hashed) + _HASHES_BYTES + _SIGNATURE_BYTES + len(server_name_of(sender))
    if size_bytes > MAX_EVENT_BYTES:
        raise EventTooLarge(f"the event has more than {MAX_EVENT_BYTES} bytes")
    event["hashes"] = {"sha256": encode_base64(sha256(hashed).digest())}
    event_id = event_id_of(version, event)
    return stored_pdu(room_id or room_id_of_create(event_id), event_id, event)


def client_event(pdu: Pdu, *, with_room_id: bool) -> JsonObject:
    """A Pdu in the form that clients get, without `unsigned`. Callers may add keys, but change nothing in it.

    `with_room_id` is False where the response says the room already, as in /sync. A redaction names its
    target in content; old clients find it at the top level too.
    Source: Client-Server API, "Room Event Format", "m.room.redaction".
    """
    event: JsonObject = {
        "type": pdu.type,
        "event_id": pdu.event_id,
        "sender": pdu.sender,
        "origin_server_ts": pdu.origin_server_ts,
        "content": pdu.content,
    }
    if pdu.state_key is not None:
        event["state_key"] = pdu.state_key
    if with_room_id:
        event["room_id"] = pdu.room_id
    if pdu.type == "m.room.redaction" and isinstance(pdu.content.get("redacts"), str):
        event["redacts"] = pdu.content["redacts"]
    return event


def _text(event: JsonObject, key: str) -> str:
    """A string of at most 255 bytes; halves of surrogate pairs were refused before."""
    text = event.get(key)
    if type(text) is not str:
        raise InvalidEvent(f"{key} is no string")
    _check_text(key, text)
    return text


def _check_text(key: str, text: str) -> None:
    if type(text) is not str:
        raise InvalidEvent(f"{key} is no string")
    try:
        size_bytes = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise InvalidEvent(f"{key} has half of a surrogate pair") from None
    if size_bytes > MAX_FIELD_BYTES:
        raise FieldTooLong(f"{key} has more than {MAX_FIELD_BYTES} bytes")


def _integer(event: JsonObject, key: str) -> int:
    value = event.get(key)
    if type(value) is not int:  # neither is True an integer
        raise InvalidEvent(f"{key} is no integer")
    return value


def _check_sender(sender: str) -> None:
    try:
        parse_user_id(sender)
    except InvalidIdentifier as error:
        raise InvalidEvent(f"sender: {error}") from None


def _check_room_id(version: RoomVersion, event: JsonObject, event_type: str) -> None:
    if version.room_id_is_create_hash and event_type == "m.room.create":
        if "room_id" in event:
            raise InvalidEvent("a create event of this version has no room_id")
        return
    room_id = _text(event, "room_id")
    try:
        parse_room_id(room_id)
    except InvalidIdentifier as error:
        raise InvalidEvent(f"room_id: {error}") from None
    if (":" not in room_id) != version.room_id_is_create_hash:
        raise InvalidEvent(f"{room_id} is not a room ID of room version {version.version}")


def _check_event_ids(event: JsonObject, key: str, limit: int | None) -> None:
    event_ids: Any = event.get(key)
    if type(event_ids) is not list:
        raise InvalidEvent(f"{key} is no list")
    if limit is not None and len(event_ids) > limit:
        raise InvalidEvent(f"{key} has more than {limit} entries")
    for event_id in event_ids:
        if type(event_id) is not str:
            raise InvalidEvent(f"{key} holds what is no string")
        try:
            parse_event_id(event_id)
        except InvalidIdentifier as error:
            raise InvalidEvent(f"{key}: {error}") from None


def _check_signatures(signatures: object) -> None:
    """By server name and key ID; whether one is missing is for those to say who verify them."""
    if type(signatures) is not dict:
        raise InvalidEvent("signatures is no object")
    for by_key_id in signatures.values():
        if type(by_key_id) is not dict:
            raise InvalidEvent("signatures of a server are no object")
        for signature in by_key_id.values():
            if type(signature) is not str:
                raise InvalidEvent("a signature is no string")
