"""Our core, asked the same questions as Synapse's in `synapse_core.py`, and answering in the same form."""

from __future__ import annotations

from collections.abc import Collection

from homeserver.protocol.auth_events import auth_state_keys
from homeserver.protocol.auth_rules import why_refused, why_refused_by_auth_events
from homeserver.protocol.canonical_json import canonical_event
from homeserver.protocol.errors import BadJson, InvalidEvent
from homeserver.protocol.event_hashes import content_hash, reference_hash
from homeserver.protocol.events import Pdu, StateKey, parse_pdu
from homeserver.protocol.identifiers import EventId, create_event_id
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.state_resolution import resolve
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import encode_base64
from synapse_compat_tests.core_cases import Answer, Case, Merge


class OurRoom:
    """A room that grows by one event at a time."""

    def __init__(self, version: str) -> None:
        self.version = room_version(version)
        self.events: dict[EventId, Pdu] = {}
        self.rejected: set[EventId] = set()

    def add(self, event: JsonObject) -> Pdu | None:
        """Receive an event; None for one whose format is refused."""
        try:
            pdu = parse_pdu(self.version, event, pushed=False)
        except (InvalidEvent, BadJson):
            return None
        self.events[pdu.event_id] = pdu
        return pdu

    def describe(self, event: JsonObject) -> Answer:
        """The hashes of an event, and the forms that they are made of."""
        try:
            pdu = parse_pdu(self.version, event, pushed=False)
        except (InvalidEvent, BadJson) as error:
            return {"refused": str(error)}
        event = {key: value for key, value in event.items() if key != "unsigned"}
        return {
            "event_id": pdu.event_id,
            "canonical_json": canonical_event(self.version, event).decode(),
            "content_hash": encode_base64(content_hash(self.version, event)),
            "reference_hash": encode_base64(reference_hash(self.version, event)),
            "redacted": canonical_event(self.version, redact(self.version, event)).decode(),
        }

    def judge_by_auth_events(self, event_id: str) -> Answer:
        """Whether an event is allowed by what it names as its auth events."""
        event = self.events[EventId(event_id)]
        auth_events = [self.events[one] for one in event.auth_events]
        create_id = create_event_id(event.room_id)
        create = None if create_id in self.rejected else self.events.get(create_id)
        return _verdict(why_refused_by_auth_events(self.version, event, auth_events, self.rejected, create))

    def judge_by_state(self, event_id: str, state: Collection[str]) -> Answer:
        """Whether an event is allowed by a state."""
        event = self.events[EventId(event_id)]
        by_key = {self.events[EventId(one)].key: self.events[EventId(one)] for one in state}
        keys = auth_state_keys(self.version, event.type, event.sender, event.state_key, event.content)
        read = {key: by_key[key] for key in keys if key in by_key}
        return _verdict(why_refused(self.version, event, read))

    def state_map(self, state: Collection[str]) -> dict[StateKey, EventId]:
        """A state with its keys."""
        return {self.events[EventId(one)].key: EventId(one) for one in state}

    def resolve(self, state_sets: Merge) -> Answer:
        """The state that several states of the room come to."""
        states = [self.state_map(state) for state in state_sets]
        resolved = resolve(self.version, states, self.events, rejected=self.rejected, absent=self.absent())
        return {"state": sorted(resolved.values())}

    def absent(self) -> set[EventId]:
        """Auth events that nobody has."""
        named = {auth_event for event in self.events.values() for auth_event in event.auth_events}
        return named.difference(self.events)


def our_answer(case: Case) -> Answer:
    """All that a case asks for."""
    room = our_room(case)
    return {
        "events": [room.describe(event) for event in case.events],
        "by_auth_events": [room.judge_by_auth_events(event_id) for event_id in case.by_auth_events],
        "by_state": [room.judge_by_state(check.event, check.state) for check in case.by_state],
        "resolved": [room.resolve(state_sets) for state_sets in case.resolutions],
    }


def our_room(case: Case) -> OurRoom:
    """The room of a case."""
    room = OurRoom(case.room_version)
    for event in case.events:
        room.add(event)
    room.rejected.update(map(EventId, case.rejected))
    return room


def _verdict(refusal: str | None) -> Answer:
    return {} if refusal is None else {"refused": refusal}
