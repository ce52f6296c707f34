"""Pdu: one event of a room, as servers exchange it. Building one, checking its format, showing it to clients.

Source: "Room Versions", section "Event format" of each version; Client-Server API, "Size limits".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from homeserver.protocol.canonical_json import MAX_INTEGER, canonical_event, check_event_json
from homeserver.protocol.errors import EventTooLarge, FieldTooLong, InvalidEvent, InvalidIdentifier
from homeserver.protocol.event_hashes import (
    chosen_event_id,
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
MAX_STORED_INTEGER: Final = 2**63 - 1
"""The greatest depth up to room version 5, and the greatest time of an event that is understood."""
MAX_KEY_ID_BYTES: Final = 64
"""The longest key ID of ours; signing keys with a longer one are refused."""

_HASHES_BYTES: Final = len(b'"hashes":{"sha256":""},') + 43
_NO_HASHES: Final[Mapping[EventId, str]] = MappingProxyType({})
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
    redacts: EventId | None = None
    """The event that a redaction names as the one to take the content from; None for all other events."""

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

    The event ID is computed, in versions 1 and 2 read; `event_id` is what it must come out as, for an event
    that was asked for.
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
    check_event_json(version, event)
    event_type = _text(event, "type", by_bytes=version.strict_byte_limits)
    if "state_key" in event:
        _text(event, "state_key", by_bytes=version.strict_byte_limits)
    if type(event.get("content")) is not dict:
        raise InvalidEvent("content is no object")
    _check_sender(_text(event, "sender"))
    _check_room_id(version, event, event_type)
    _check_references(version, event, "prev_events", MAX_PREV_EVENTS if pushed else None)
    _check_references(version, event, "auth_events", MAX_AUTH_EVENTS if pushed else None)
    if _integer(event, "depth") < 0:
        raise InvalidEvent("depth is negative")
    _integer(event, "origin_server_ts")
    _check_signatures(event.get("signatures", {}))
    if len(canonical_event(version, event)) > MAX_EVENT_BYTES:
        raise EventTooLarge(f"the event has more than {MAX_EVENT_BYTES} bytes")
    computed = event_id_of(version, event)
    if event_id is not None and computed != event_id:
        raise InvalidEvent(f"the event is {computed}, not {event_id}")
    if not has_valid_content_hash(version, event):
        event = redact(version, event)
    room_id = RoomId(event["room_id"]) if "room_id" in event else room_id_of_create(computed)
    return stored_pdu(version, room_id, computed, event)


def stored_pdu(version: RoomVersion, room_id: RoomId, event_id: EventId, event: JsonObject) -> Pdu:
    """A Pdu of an event that was checked before: one out of our own database."""
    return Pdu(
        event_id=event_id,
        room_id=room_id,
        type=event["type"],
        sender=event["sender"],
        state_key=event.get("state_key"),
        content=event["content"],
        prev_events=referenced_ids(event["prev_events"]),
        auth_events=referenced_ids(event["auth_events"]),
        depth=event["depth"],
        origin_server_ts=event["origin_server_ts"],
        json=event,
        redacts=_redacted_by(version, event) if event["type"] == "m.room.redaction" else None,
    )


def redact_pdu(version: RoomVersion, pdu: Pdu) -> Pdu:
    """The redacted form of a Pdu, under the same event ID."""
    json = redact(version, pdu.json)
    redacts = pdu.redacts if version.redacts_in_content else None
    return replace(pdu, content=json["content"], json=json, redacts=redacts)


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
    reference_hashes: Mapping[EventId, str] = _NO_HASHES,
) -> Pdu:
    """A new event of this server, hashed but not signed.

    `room_id` is None for a create event of a version whose room IDs are made of it, and only there.
    `reference_hashes`: where servers choose event IDs, the reference hashes in base64 of the events that this
    one refers to, as far as they are known. The target of a redaction stands in the content of the draft,
    whatever the version. `depth` is kept within what events may say. The size limit counts a signature of
    ours, with the longest key ID we use, since an event is signed only when it first leaves this server.

    Raises InvalidEvent, EventTooLarge and BadJson for a draft that cannot become an event.
    Source: Server-Server API, "Adding hashes and signatures to outgoing events".
    """
    check_event_json(version, draft.content, max_depth=MAX_DEPTH - 1)
    if not isinstance(draft.content, dict):
        raise InvalidEvent("content is no object")
    if (room_id is None) != (version.room_id_is_create_hash and draft.type == "m.room.create"):
        raise InvalidEvent("only a create event is without a room ID, and only where its hash becomes one")
    if len(prev_events) > MAX_PREV_EVENTS or len(auth_events) > MAX_AUTH_EVENTS:
        raise InvalidEvent("too many prev_events or auth_events")
    event: JsonObject = {
        "auth_events": _references(version, auth_events, reference_hashes),
        "content": draft.content,
        "depth": min(depth, greatest_depth(version)),
        "origin_server_ts": origin_server_ts,
        "prev_events": _references(version, prev_events, reference_hashes),
        "sender": sender,
        "type": draft.type,
    }
    _check_text("type", draft.type)
    if room_id is not None:
        event["room_id"] = room_id
    if draft.state_key is not None:
        _check_text("state_key", draft.state_key)
        event["state_key"] = draft.state_key
    if draft.type == "m.room.redaction" and not version.redacts_in_content and "redacts" in draft.content:
        event["content"] = {key: value for key, value in draft.content.items() if key != "redacts"}
        event["redacts"] = draft.content["redacts"]
    if version.has_chosen_event_ids:
        event["event_id"] = chosen_event_id(version, event, server_name_of(sender))
    hashed = content_hash_bytes(version, event)
    size_bytes = len(hashed) + _HASHES_BYTES + _SIGNATURE_BYTES + len(server_name_of(sender))
    if size_bytes > MAX_EVENT_BYTES:
        raise EventTooLarge(f"the event has more than {MAX_EVENT_BYTES} bytes")
    event["hashes"] = {"sha256": encode_base64(sha256(hashed).digest())}
    event_id = event_id_of(version, event)
    return stored_pdu(version, room_id or room_id_of_create(event_id), event_id, event)


def greatest_depth(version: RoomVersion) -> int:
    """The depth at which a room stays, however many events follow."""
    return MAX_INTEGER if version.strict_json else MAX_STORED_INTEGER


def client_event(pdu: Pdu, *, with_room_id: bool) -> JsonObject:
    """A Pdu in the form that clients get, without `unsigned`. Callers may add keys, but change nothing in it.

    `with_room_id` is False where the response says the room already, as in /sync. The target of a redaction
    is shown in its content and at the top level: where clients look for it depends on the room version.
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
    if pdu.redacts is not None:
        event["content"] = {**pdu.content, "redacts": pdu.redacts}
        event["redacts"] = pdu.redacts
    return event


def has_oversized_text(pdu: Pdu) -> bool:
    """Whether the type or the state key has more than 255 bytes: in old versions no error of form."""
    return any(_size_bytes(text) > MAX_FIELD_BYTES for text in (pdu.type, pdu.state_key or ""))


def referenced_ids(references: Sequence[Any]) -> tuple[EventId, ...]:
    """The events that prev_events or auth_events of a checked event name, in the form of any room version."""
    return tuple([EventId(entry if type(entry) is str else entry[0]) for entry in references])


def _redacted_by(version: RoomVersion, event: JsonObject) -> EventId | None:
    redacts = (event["content"] if version.redacts_in_content else event).get("redacts")
    if not isinstance(redacts, str) or "state_key" in event:
        return None
    try:
        return parse_event_id(redacts)
    except InvalidIdentifier:
        return None


def _references(
    version: RoomVersion, event_ids: Iterable[EventId], hashes: Mapping[EventId, str]
) -> list[Any]:
    """References to events as a version writes them."""
    if version.has_chosen_event_ids:
        return [
            [event_id, {"sha256": hashes[event_id]} if event_id in hashes else {}] for event_id in event_ids
        ]
    return list(event_ids)


def _text(event: JsonObject, key: str, *, by_bytes: bool = True) -> str:
    """A string of at most 255 bytes, or code points; halves of surrogate pairs were refused before."""
    text = event.get(key)
    if type(text) is not str:
        raise InvalidEvent(f"{key} is no string")
    if by_bytes:
        _check_text(key, text)
    elif len(text) > MAX_FIELD_BYTES:
        raise FieldTooLong(f"{key} has more than {MAX_FIELD_BYTES} characters")
    return text


def _check_text(key: str, text: str) -> None:
    if type(text) is not str:
        raise InvalidEvent(f"{key} is no string")
    try:
        size_bytes = _size_bytes(text)
    except UnicodeEncodeError:
        raise InvalidEvent(f"{key} has half of a surrogate pair") from None
    if size_bytes > MAX_FIELD_BYTES:
        raise FieldTooLong(f"{key} has more than {MAX_FIELD_BYTES} bytes")


def _size_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _integer(event: JsonObject, key: str) -> int:
    value = event.get(key)
    if type(value) is not int:  # neither is True an integer
        raise InvalidEvent(f"{key} is no integer")
    if not -MAX_STORED_INTEGER <= value <= MAX_STORED_INTEGER:
        raise InvalidEvent(f"{key} is an integer beyond 64 bits")
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


def _check_references(version: RoomVersion, event: JsonObject, key: str, limit: int | None) -> None:
    """The hashes beside chosen event IDs are not looked at: in old rooms they are often wrong."""
    references: Any = event.get(key)
    if type(references) is not list:
        raise InvalidEvent(f"{key} is no list")
    if limit is not None and len(references) > limit:
        raise InvalidEvent(f"{key} has more than {limit} entries")
    for reference in references:
        event_id = reference
        if version.has_chosen_event_ids:
            if type(reference) is not list or len(reference) != 2 or type(reference[1]) is not dict:
                raise InvalidEvent(f"{key} holds what is no pair of an event ID and its hashes")
            event_id = reference[0]
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
