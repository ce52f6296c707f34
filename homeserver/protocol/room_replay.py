"""What became of a room's state, found by going through all of its events as a server does.

Source: Server-Server API, "Checks performed on receipt of a PDU"; "Room state resolution".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt

from homeserver.protocol.auth_events import CREATE, POWER_LEVELS, auth_state_keys
from homeserver.protocol.auth_rules import why_refused, why_refused_by_auth_events
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.state_resolution import AuthGraph, find_overlay_conflicts, resolve_conflicts


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an event was left out, and what by: its own auth events, or the state before it."""

    by: str
    why: str


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay came to: the state after the forward extremities, and who may not have a part in it."""

    state: dict[StateKey, EventId]
    extremities: tuple[EventId, ...]
    refused: Mapping[EventId, Refusal]


def replay(
    version: RoomVersion, events: Mapping[EventId, Pdu], *, absent: Collection[EventId] = ()
) -> Replay:
    """Go through a room from its create event on.

    `events`: each after its prev_events, which are all there, and after its auth events. `absent`: the auth
    events that are not there. An event that its own auth events, or the state before it, do not allow is
    rejected: it changes no state, authorises nothing, and is no forward extremity. Nothing is soft-failed:
    that depends on the order in which events come to one server.
    """
    room = _Room(version, events, absent)
    for event in events.values():
        room.add(event)
    return room.result()


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """A state, as what is different from a base that many states share.

    So the states of a long line of events need little more room and time than one of them: what is copied for
    each is about the square root of the state.
    """

    base: Mapping[StateKey, EventId]
    changes: Mapping[StateKey, EventId | None]
    """None for a key that the base has and the state has not."""

    def get(self, key: StateKey) -> EventId | None:
        return self.changes[key] if key in self.changes else self.base.get(key)

    def changed(self, changes: Mapping[StateKey, EventId | None]) -> _State:
        merged = {**self.changes, **changes}
        if len(merged) <= 16 + 2 * isqrt(len(self.base)):
            return _State(self.base, merged)
        return _State(_State(self.base, merged).whole(), {})

    def whole(self) -> dict[StateKey, EventId]:
        state: dict[StateKey, EventId | None] = {**self.base, **self.changes}
        return {key: event_id for key, event_id in state.items() if event_id is not None}

    def overlay(self, base: Mapping[StateKey, EventId]) -> Mapping[StateKey, EventId | None]:
        """What is different from a base."""
        if base is self.base:
            return self.changes
        own = self.whole()
        overlay: dict[StateKey, EventId | None] = {
            key: event_id for key, event_id in own.items() if base.get(key) != event_id
        }
        overlay.update((key, None) for key in base if key not in own)
        return overlay


@dataclass(slots=True, eq=False)
class _Room:
    """A room as far as its events have been gone through."""

    version: RoomVersion
    events: Mapping[EventId, Pdu]
    absent: Collection[EventId]
    graph: AuthGraph[EventId] = field(default_factory=AuthGraph)
    refused: dict[EventId, Refusal] = field(default_factory=dict)
    create: Pdu | None = None
    """The create event, once it was accepted."""
    after: dict[EventId, _State] = field(default_factory=dict)
    """The state after an event, as long as one is to come that needs it."""
    to_come: Counter[EventId] = field(default_factory=Counter)
    """How many events are to come that have an event among their prev_events."""
    joined: dict[frozenset[_State], _State] = field(default_factory=dict)
    """What states were resolved to: long forks may meet often without a change of either state."""
    covered: set[EventId] = field(default_factory=set)
    """The events on which accepted ones build, with nothing but rejected ones in between."""

    def __post_init__(self) -> None:
        for event in self.events.values():
            self.to_come.update(set(event.prev_events))

    def add(self, event: Pdu) -> None:
        is_power_levels = (event.type, event.state_key) == POWER_LEVELS
        self.graph.add(event.event_id, event.auth_events, is_power_levels=is_power_levels)
        state = self._state_before(event.prev_events)
        refusal = self._why_refused(event, state)
        if refusal is not None:
            self.refused[event.event_id] = refusal
        else:
            if event.state_key is not None:
                state = state.changed({event.key: event.event_id})
                if event.key == CREATE:
                    self.create = event
            self._cover(event.prev_events)
        self.after[event.event_id] = state
        for event_id in set(event.prev_events):
            self.to_come[event_id] -= 1
            if not self.to_come[event_id] and event_id in self.covered:
                del self.after[event_id]

    def result(self) -> Replay:
        extremities = tuple(
            event_id
            for event_id in self.events
            if event_id not in self.refused and event_id not in self.covered
        )
        return Replay(self._state_before(extremities).whole(), extremities, self.refused)

    def _state_before(self, prev_events: Sequence[EventId]) -> _State:
        """The resolved state of those after the previous events."""
        states = list(dict.fromkeys(self.after[one] for one in prev_events))
        if len(states) < 2:
            return states[0] if states else _State({}, {})
        together = frozenset(states)
        if together not in self.joined:
            self.joined[together] = self._resolve(states)
        return self.joined[together]

    def _resolve(self, states: Sequence[_State]) -> _State:
        """The resolved state; where it is as one of the states, that one, so that it is known again."""
        base = states[0].base
        overlays = [state.overlay(base) for state in states]
        conflicts = find_overlay_conflicts(self.version, base, overlays, self.graph)
        # Which events were rejected need not be told: no accepted event but the create event names one,
        # and what that stands on is in the auth chains of all states.
        changes = resolve_conflicts(self.version, conflicts, self.events, self.graph, absent=self.absent)
        for state, overlay in zip(states, overlays, strict=True):
            if overlay == changes:
                return state
        return _State(base, {}).changed(changes)

    def _why_refused(self, event: Pdu, before: _State) -> Refusal | None:
        auth_events = [self.events[one] for one in event.auth_events if one in self.events]
        why = why_refused_by_auth_events(self.version, event, auth_events, self.refused, self.create)
        if why is not None:
            return Refusal("its auth events", why)
        keys = auth_state_keys(self.version, event.type, event.sender, event.state_key, event.content)
        read = ((key, before.get(key)) for key in keys)
        state = {key: self.events[event_id] for key, event_id in read if event_id is not None}
        why = why_refused(self.version, event, state)
        return None if why is None else Refusal("the state before it", why)

    def _cover(self, prev_events: Iterable[EventId]) -> None:
        stack = list(prev_events)
        while stack:
            event_id = stack.pop()
            if event_id not in self.covered:
                self.covered.add(event_id)
                if event_id in self.refused:
                    stack.extend(self.events[event_id].prev_events)
