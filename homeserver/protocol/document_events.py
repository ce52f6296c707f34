"""Events as documents about rooms hold them: whole PDUs, or only what somebody wrote down of them.

An event with an `event_id` keeps it, whatever text it is, and may lack what only hashes and signatures need.
One without is a PDU: its format is checked and its ID computed. References are event IDs, or the pairs of
room versions 1 and 2, in every version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from homeserver.protocol.auth_events import CREATE
from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.errors import BadDocument, BadJson, InvalidEvent
from homeserver.protocol.event_hashes import room_id_of_create
from homeserver.protocol.events import Pdu, parse_pdu
from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject

CREATE_EVENT: Final = 'create event (m.room.create with the state_key "")'
"""What it is, for whoever left it out."""

_KINDS: Final[Mapping[type, str]] = {str: "string", int: "integer", list: "list", dict: "object"}
_FIELDS: Final[Mapping[str, type]] = {
    "event_id": str,
    "type": str,
    "sender": str,
    "content": dict,
    "room_id": str,
    "state_key": str,
    "prev_events": list,
    "auth_events": list,
    "depth": int,
    "origin_server_ts": int,
}
_NEEDED: Final = ("type", "sender", "content")
_NEEDED_OF_A_PDU: Final = (*_NEEDED, "prev_events", "auth_events", "depth", "origin_server_ts")


@dataclass(frozen=True, slots=True)
class DocumentEvent:
    """An event of a document."""

    where: str
    """Its path in the document."""
    source: JsonObject
    """The event as it stands there."""
    pdu: Pdu
    """Its depth is 0 where the event has none: see `with_depths`."""
    is_redacted: bool = False
    """Its content hash is wrong, so that servers, and the Pdu, have the redacted event."""

    @property
    def has_given_id(self) -> bool:
        """Whether the ID was given, not computed."""
        return "event_id" in self.source


def field_of(where: str, value: JsonObject, key: str, kind: type) -> Any:
    """A field of an object, None where it is missing. Raises BadDocument for another type of JSON."""
    if key not in value:
        return None
    if type(value[key]) is not kind:
        raise BadDocument(f"{where}.{key}" if where else key, f"is no {_KINDS[kind]}")
    return value[key]


def is_create(event: object) -> bool:
    """Whether a value is a create event, as far as type and state key say."""
    return isinstance(event, dict) and (event.get("type"), event.get("state_key")) == CREATE


def read_events(version: RoomVersion, listed: Iterable[tuple[str, Any]]) -> list[DocumentEvent]:
    """The events of one room, each with its path in the document, in the same order.

    Their room IDs are those they name. One that names none belongs to the room of the create event. Where the
    room ID is made of a create event whose ID was given, the room ID that the create event, or else the first
    event, names stands for the room as well.

    Raises BadDocument: for an event that is none, for an ID that two have, and where a room ID is missing.
    """
    events = [_read_event(version, where, value) for where, value in listed]
    places: dict[EventId, str] = {}
    for event in events:
        first = places.setdefault(event.pdu.event_id, event.where)
        if first != event.where:
            where = f"{event.where}.event_id" if event.has_given_id else event.where
            raise BadDocument(where, f"{event.pdu.event_id} is the ID of {first} too")
    return _in_one_room(version, events, next((event for event in events if is_create(event.source)), None))


def _read_event(version: RoomVersion, where: str, value: Any) -> DocumentEvent:
    if type(value) is not dict:
        raise BadDocument(where, "is no object")
    for key, kind in _FIELDS.items():
        field_of(where, value, key, kind)
    for key in _NEEDED if "event_id" in value else _NEEDED_OF_A_PDU:
        if key not in value:
            raise BadDocument(f"{where}.{key}", "is missing")
    if "event_id" in value:
        return DocumentEvent(where, value, _pdu_with_given_id(where, value))
    try:
        pdu = parse_pdu(version, value, pushed=False)
    except (InvalidEvent, BadJson) as error:
        raise BadDocument(where, str(error)) from None
    return DocumentEvent(where, value, pdu, is_redacted=pdu.content != value["content"])


def _pdu_with_given_id(where: str, event: JsonObject) -> Pdu:
    return Pdu(
        event_id=EventId(event["event_id"]),
        room_id=RoomId(event.get("room_id", "")),
        type=event["type"],
        sender=UserId(event["sender"]),
        state_key=event.get("state_key"),
        content=event["content"],
        prev_events=_references(f"{where}.prev_events", event.get("prev_events", [])),
        auth_events=_references(f"{where}.auth_events", event.get("auth_events", [])),
        depth=event.get("depth", 0),
        origin_server_ts=event.get("origin_server_ts", 0),
        json=event,
    )


def _references(where: str, references: list[Any]) -> tuple[EventId, ...]:
    event_ids = []
    for index, reference in enumerate(references):
        event_id = reference
        if type(reference) is list and len(reference) == 2 and type(reference[1]) is dict:
            event_id = reference[0]
        if type(event_id) is not str:
            raise BadDocument(f"{where}[{index}]", "is no event ID")
        event_ids.append(EventId(event_id))
    return tuple(event_ids)


def _in_one_room(
    version: RoomVersion, events: list[DocumentEvent], create: DocumentEvent | None
) -> list[DocumentEvent]:
    room_id, other_name = None if create is None else create.pdu.room_id, None
    if create is not None and version.room_id_is_create_hash:
        room_id = room_id_of_create(create.pdu.event_id)
        names = [event.source["room_id"] for event in (create, *events) if "room_id" in event.source]
        if create.has_given_id and names and room_id not in names:
            other_name = names[0]
    moved = []
    for event in events:
        named: RoomId | None = event.pdu.room_id
        if event is create or not named or named == other_name:
            named = room_id
        if not named:
            no_create = "" if create is not None else f", and there is no {CREATE_EVENT} to name it"
            raise BadDocument(f"{event.where}.room_id", f"is missing{no_create}")
        moved.append(event if named == event.pdu.room_id else _in_room(event, named))
    return moved


def _in_room(event: DocumentEvent, room_id: RoomId) -> DocumentEvent:
    return replace(event, pdu=replace(event.pdu, room_id=room_id))


def with_depths(events: Sequence[DocumentEvent]) -> list[DocumentEvent]:
    """The same events, those without a depth one deeper than their prev_events, in whatever order they are.

    A previous event that is not among them counts as 0, and so does one in each circle.
    """
    depths = {event.pdu.event_id: event.pdu.depth for event in events if "depth" in event.source}
    below = {
        event.pdu.event_id: event.pdu.prev_events for event in events if event.pdu.event_id not in depths
    }
    entered: set[EventId] = set()
    for start in sorted(below):  # where a circle is broken depends on where it is entered
        stack = [start]
        while stack:
            event_id = stack[-1]
            if event_id in depths:
                stack.pop()
            elif event_id in entered:
                deepest = max((depths.get(one, 0) for one in below[event_id]), default=0)
                depths[event_id] = min(deepest + 1, MAX_INTEGER)
            else:
                entered.add(event_id)
                stack.extend(one for one in below[event_id] if one in below and one not in entered)
    return [replace(event, pdu=replace(event.pdu, depth=depths[event.pdu.event_id])) for event in events]
