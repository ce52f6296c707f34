"""Documents about a room: {"room_version", "events", "state_sets"}, whose state is to be found.

With state sets those are what is to be resolved. Without them the events are a graph by their prev_events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from homeserver.protocol.document_events import (
    CREATE_EVENT,
    DocumentEvent,
    field_of,
    is_create,
    read_events,
    with_depths,
)
from homeserver.protocol.errors import BadDocument, UnknownRoomVersion
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion, room_version
from homeserver.protocol.strict_json import JsonObject

_MAX_CYCLE_SHOWN: Final = 6


@dataclass(frozen=True)
class RoomDocument:
    """A room as a document tells it.

    Each event comes after those of its auth events that are there, and without state sets after its
    prev_events, all of which are there.
    """

    version: RoomVersion
    events: dict[EventId, Pdu]
    state_sets: list[dict[StateKey, EventId]] | None
    places: dict[EventId, str]
    """The path of each event in the document."""
    absent: frozenset[EventId]
    """The auth events that are not among the events."""
    notes: list[str]
    """What the reader of the result should know of the document."""


def read_room(document: JsonObject) -> RoomDocument:
    """The room that a document tells of. Raises BadDocument."""
    listed = field_of("", document, "events", list)
    if listed is None:
        raise BadDocument("events", "is missing")
    places = [(f"events[{index}]", value) for index, value in enumerate(listed)]
    version = version_of_document(document, places)
    events = read_events(version, places)
    create = _the_create(events)
    notes = [
        f"{event.where}: its content hash is wrong, so the redacted event counts"
        for event in events
        if event.is_redacted
    ]
    absent = _absent_auth_events(events, notes)
    events = [_create_of_version(version, event, notes) if event is create else event for event in events]

    sets = field_of("", document, "state_sets", list)
    if sets is None:
        _check_prev_events(events)
        notes += [
            f"{event.where}: has no prev_events, so no state comes before it"
            for event in events
            if not is_create(event.source) and not event.pdu.prev_events
        ]
    ordered = with_depths(_in_order(events, by_prev_events=sets is None))
    by_id = {event.pdu.event_id: event.pdu for event in ordered}
    return RoomDocument(
        version=version,
        events=by_id,
        state_sets=None if sets is None else _state_sets(sets, by_id),
        places={event.pdu.event_id: event.where for event in events},
        absent=absent,
        notes=notes,
    )


def version_of_document(document: JsonObject, events: Iterable[tuple[str, Any]]) -> RoomVersion:
    """The room version that a document names, or else the create event among its events.

    Raises BadDocument for one that is not known, and where nothing names one.
    """
    where, name = "room_version", field_of("", document, "room_version", str)
    if name is None:
        create = next(((where, event) for where, event in events if is_create(event)), None)
        if create is None:
            raise BadDocument(where, f"is missing, and there is no {CREATE_EVENT} to name it")
        content = field_of(*create, "content", dict) or {}
        where = f"{create[0]}.content.room_version"
        name = field_of(f"{create[0]}.content", content, "room_version", str) or "1"
    try:
        return room_version(name)
    except UnknownRoomVersion as error:
        raise BadDocument(where, f"{error}; known are {', '.join(ROOM_VERSIONS)}") from None


def _the_create(events: Sequence[DocumentEvent]) -> DocumentEvent:
    creates = [event for event in events if is_create(event.source)]
    if not creates:
        raise BadDocument("events", f"none of them is the {CREATE_EVENT}")
    if len(creates) > 1:
        raise BadDocument(creates[1].where, f"is a second create event, after {creates[0].where}")
    return creates[0]


def _create_of_version(version: RoomVersion, create: DocumentEvent, notes: list[str]) -> DocumentEvent:
    """A create event whose ID was given, as the rules of the version want it.

    Test vectors use one create event for several versions, and clients are shown a room_id that the event
    does not have. Where the ID is computed, nothing can be added and nothing left out.
    """
    if not create.has_given_id:
        return create
    pdu = create.pdu
    named = pdu.content.get("room_version", version.version)
    if named != version.version:
        notes.append(
            f"{create.where}.content.room_version: is {named!r:.100}, but the document is of version "
            f"{version.version}, which counts"
        )
    source = pdu.json
    if version.room_id_is_create_hash:
        source = {key: value for key, value in source.items() if key != "room_id"}
    content = {**pdu.content, "room_version": version.version}
    return replace(create, pdu=replace(pdu, content=content, json={**source, "content": content}))


def _absent_auth_events(events: Sequence[DocumentEvent], notes: list[str]) -> frozenset[EventId]:
    there = {event.pdu.event_id for event in events}
    absent = set()
    for event in events:
        for index, event_id in enumerate(event.pdu.auth_events):
            if event_id not in there:
                absent.add(event_id)
                notes.append(
                    f"{event.where}.auth_events[{index}]: {event_id} is not among the events, and left out"
                )
    return frozenset(absent)


def _check_prev_events(events: Sequence[DocumentEvent]) -> None:
    there = {event.pdu.event_id for event in events}
    for event in events:
        for index, event_id in enumerate(event.pdu.prev_events):
            if event_id not in there:
                raise BadDocument(
                    f"{event.where}.prev_events[{index}]", f"{event_id} is not among the events"
                )


def _state_sets(sets: list[Any], events: dict[EventId, Pdu]) -> list[dict[StateKey, EventId]]:
    states = []
    for set_index, event_ids in enumerate(sets):
        if type(event_ids) is not list:
            raise BadDocument(f"state_sets[{set_index}]", "is no list")
        state: dict[StateKey, EventId] = {}
        for index, event_id in enumerate(event_ids):
            where = f"state_sets[{set_index}][{index}]"
            if type(event_id) is not str:
                raise BadDocument(where, "is no event ID")
            event = events.get(EventId(event_id))
            if event is None:
                raise BadDocument(where, f"{event_id} is not among the events")
            if event.state_key is None:
                raise BadDocument(where, f"{event_id} is no state event: it has no state_key")
            if state.setdefault(event.key, event.event_id) != event_id:
                raise BadDocument(
                    where, f"the set has another {event.type} with the state key {event.state_key!r}"
                )
        states.append(state)
    return states


def _in_order(events: Sequence[DocumentEvent], *, by_prev_events: bool) -> list[DocumentEvent]:
    """The events, each after what it refers to. Raises BadDocument for a cycle."""
    by_id = {event.pdu.event_id: event for event in events}
    below = {
        event_id: {
            reference
            for reference in (*event.pdu.auth_events, *(event.pdu.prev_events if by_prev_events else ()))
            if reference in by_id
        }
        for event_id, event in by_id.items()
    }
    above: dict[EventId, list[EventId]] = {}
    for event_id, references in below.items():
        for reference in references:
            above.setdefault(reference, []).append(event_id)
    waiting = {event_id: len(references) for event_id, references in below.items()}
    ready = deque(event_id for event_id, count in waiting.items() if count == 0)
    ordered = []
    while ready:
        event_id = ready.popleft()
        ordered.append(by_id[event_id])
        for later in above.get(event_id, ()):
            waiting[later] -= 1
            if waiting[later] == 0:
                ready.append(later)
    if len(ordered) < len(events):
        stuck = {event_id: below[event_id] for event_id, count in waiting.items() if count}
        cycle = _cycle_in(stuck)
        shown = " -> ".join([*cycle[:_MAX_CYCLE_SHOWN], *(["..."] if len(cycle) > _MAX_CYCLE_SHOWN else [])])
        kinds = "auth_events or prev_events" if by_prev_events else "auth_events"
        raise BadDocument(by_id[cycle[0]].where, f"its {kinds} lead back to it: {shown}")
    return ordered


def _cycle_in(below: dict[EventId, set[EventId]]) -> list[EventId]:
    """A cycle among events each of which refers to another of them; it begins and ends with the same one."""
    steps: dict[EventId, int] = {}
    at = next(iter(below))
    while at not in steps:
        steps[at] = len(steps)
        at = min(reference for reference in below[at] if reference in below)
    return [*list(steps)[steps[at] :], at]
