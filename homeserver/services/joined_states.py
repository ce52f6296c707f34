"""What a resident server says of a room when it has taken our join, and how much of that holds.

The state and its auth chains have passed the gate; here each event is checked against its own auth events, of
which those come first that others stand on. What does not hold is left out, with all that stands on it; but
the create event and our join have to.
Source: Server-Server API, "Joining Rooms", "Checks performed on receipt of a PDU".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from homeserver.protocol.auth_events import CREATE, auth_state_keys
from homeserver.protocol.auth_rules import check_against_auth_events, check_auth
from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.errors import BadJson, InvalidEvent
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import RoomVersion
from homeserver.services.outliers import check_by_auth_events
from homeserver.services.pdu_gate import RefusedPdu
from storage.stored_places import StoredBody


@dataclass(frozen=True, slots=True)
class TwoLists:
    """Two lists of events as they came, in which most stand twice."""

    events: Sequence[Any]
    """Each of them once."""
    first: Sequence[int]
    """Where among `events` those of the first list are."""

    @classmethod
    def of(cls, first: Iterable[Any], second: Iterable[Any]) -> TwoLists:
        """The lists, compared by what their entries are in canonical JSON."""
        events: list[Any] = []
        places: dict[bytes | int, int] = {}

        def place(event: Any) -> int:
            try:
                text: bytes | int = canonical_json(event)
            except BadJson:
                text = len(events)
            if text not in places:
                places[text] = len(events)
                events.append(event)
            return places[text]

        in_first = [place(event) for event in first]
        for event in second:
            place(event)
        return cls(events, in_first)


@dataclass(frozen=True, slots=True)
class GivenState:
    """Verified events: a state, and others that may belong to its auth chains."""

    state: Sequence[Pdu]
    events: Mapping[EventId, Pdu]
    """All of them, by their IDs."""

    @classmethod
    def of(cls, lists: TwoLists, outcomes: Sequence[Pdu | RefusedPdu]) -> GivenState:
        """What the gate lets in of a state (the first list) and its auth chains."""
        events: dict[EventId, Pdu] = {}
        for outcome in outcomes:
            if isinstance(outcome, Pdu):
                events.setdefault(outcome.event_id, outcome)
        state = (outcomes[place] for place in lists.first)
        ids = dict.fromkeys(outcome.event_id for outcome in state if isinstance(outcome, Pdu))
        return cls([events[event_id] for event_id in ids], events)

    def named(self) -> set[EventId]:
        """The IDs of all events, and of all that they name as auth events."""
        named = {event_id for pdu in self.events.values() for event_id in pdu.auth_events}
        return named.union(self.events)


@dataclass(frozen=True, slots=True)
class JoinedState:
    """The state before a join, as far as it holds."""

    state: Mapping[StateKey, Pdu]
    events: Mapping[EventId, Pdu]
    """The events of the state, and of the auth chains of these and of the join."""


def check_joined_state(
    version: RoomVersion, join: Pdu, given: GivenState, known: Mapping[EventId, StoredBody]
) -> JoinedState:
    """Check what a resident server gave.

    `known`: those of the events, and of their auth events, that were checked before. Raises InvalidEvent
    where the answer is not one about this room, NotAllowed where its state does not let the join in.
    """
    create = _create(version, join, given)
    new = [
        pdu
        for event_id, pdu in given.events.items()
        if event_id not in known
        and event_id != join.event_id
        and pdu.room_id == join.room_id
        and (pdu.type != "m.room.create" or pdu is create)
    ]
    accepted = {event_id: body.pdu for event_id, body in known.items() if not body.is_rejected}
    for checked in check_by_auth_events(version, new, known):
        if checked.refusal is None:
            accepted[checked.pdu.event_id] = checked.pdu
    state: dict[StateKey, Pdu] = {}
    for pdu in given.state:
        if pdu.state_key is not None and pdu.event_id in accepted:
            state.setdefault(pdu.key, accepted[pdu.event_id])
    if CREATE not in state or state[CREATE].event_id != create.event_id:
        raise InvalidEvent("the create event is refused")
    if not accepted.keys() >= set(create.auth_events):
        raise InvalidEvent("the create event names events that are refused")
    _check_join(version, join, state, accepted)
    roots = [*(pdu.event_id for pdu in state.values()), *join.auth_events]
    needed = _with_auth_chains(roots, accepted)
    return JoinedState(state, {event_id: pdu for event_id, pdu in accepted.items() if event_id in needed})


def _create(version: RoomVersion, join: Pdu, given: GivenState) -> Pdu:
    """The create event in the state. Raises InvalidEvent where there is not just one."""
    match [pdu for pdu in given.state if pdu.type == "m.room.create" and pdu.state_key == ""]:
        case [create]:
            pass
        case found:
            raise InvalidEvent(f"the state has {len(found)} create events")
    if create.room_id != join.room_id:
        raise InvalidEvent("the create event is of another room")
    if create.content.get("room_version", "1") != version.version:
        raise InvalidEvent("the room is of another version")
    return create


def _check_join(
    version: RoomVersion, join: Pdu, state: Mapping[StateKey, Pdu], accepted: Mapping[EventId, Pdu]
) -> None:
    """Check that its auth events, and the state before it, let our join in."""
    absent = [event_id for event_id in join.auth_events if event_id not in accepted]
    if absent:
        raise InvalidEvent(f"auth events of the join are missing, or refused: {', '.join(absent)}")
    auth_events = [accepted[event_id] for event_id in join.auth_events]
    check_against_auth_events(version, join, auth_events, (), state[CREATE])
    keys = auth_state_keys(version, join.type, join.sender, join.state_key, join.content)
    check_auth(version, join, {key: state[key] for key in keys if key in state})


def _with_auth_chains(roots: Collection[EventId], events: Mapping[EventId, Pdu]) -> set[EventId]:
    """Some events, and all that their auth chains hold."""
    found = set(roots)
    stack = list(found)
    while stack:
        pdu = events.get(stack.pop())  # what is stored already has its chain there
        for event_id in () if pdu is None else pdu.auth_events:
            if event_id not in found:
                found.add(event_id)
                stack.append(event_id)
    return found
