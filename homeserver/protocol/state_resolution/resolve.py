"""The algorithm: replay what is in conflict, and keep what the auth rules allow.

Source: Room Version 2, "State resolution", "Algorithm"; Room Version 12, the same section; for version 1 see
`resolve_v1`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias

from homeserver.protocol.auth_events import CREATE, JOIN_RULES, POWER_LEVELS, auth_state_keys
from homeserver.protocol.auth_rules import why_refused
from homeserver.protocol.errors import MissingEvents, NotAllowed
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId, create_event_id
from homeserver.protocol.power_levels import PowerLevels
from homeserver.protocol.room_versions import RoomVersion, StateResolution
from homeserver.protocol.state_resolution.auth_graph import AuthGraph, Ref, auth_graph_of
from homeserver.protocol.state_resolution.conflicts import Conflicts, find_overlay_conflicts, overlays_of
from homeserver.protocol.state_resolution.ordering import (
    conflicted_below,
    is_power_event,
    mainline_order,
    power_order,
)
from homeserver.protocol.state_resolution.resolve_v1 import ReplayV1

StateMap: TypeAlias = Mapping[StateKey, EventId]
"""A state of a room: (event type, state key) -> event ID."""


def resolve(
    version: RoomVersion,
    states: Sequence[StateMap],
    events: Mapping[EventId, Pdu],
    *,
    rejected: Container[EventId] = (),
    absent: Container[EventId] = (),
    refused: dict[EventId, str] | None = None,
) -> dict[StateKey, EventId]:
    """Merge the states of a room's forks into the one state all servers arrive at.

    `states`: one map per fork, (event type, state key) -> event ID.
    `events`: all events of the states and their auth chains; MissingEvents names those that are not there,
    unless they are in `absent`: what nobody can supply is left out. `rejected`, `refused`: see
    `resolve_conflicts`.
    Source: Room Version 12, "State resolution".
    """
    if not states:
        return {}
    resolved = dict(states[0])
    overlays = overlays_of(states)
    if not any(overlays):
        return resolved
    graph = auth_graph_of(events)
    needed = set(resolved.values())
    needed.update(event_id for overlay in overlays for event_id in overlay.values() if event_id is not None)
    if not graph.is_whole:
        needed |= graph.auth_chain(needed)
    missing = {event_id for event_id in needed if event_id not in events and event_id not in absent}
    if missing:
        raise MissingEvents(missing)
    conflicts = find_overlay_conflicts(version, states[0], overlays, graph)
    changes = resolve_conflicts(
        version, conflicts, events, graph, rejected=rejected, absent=absent, refused=refused
    )
    for key, event_id in changes.items():
        if event_id is None:
            resolved.pop(key, None)
        else:
            resolved[key] = event_id
    return resolved


def resolve_conflicts(
    version: RoomVersion,
    conflicts: Conflicts[Ref],
    events: Mapping[Ref, Pdu],
    graph: AuthGraph[Ref],
    *,
    rejected: Container[Ref] = (),
    absent: Container[Ref] = (),
    refused: dict[Ref, str] | None = None,
) -> dict[StateKey, Ref | None]:
    """Decide the conflicts: what the resolved state has other than `conflicts.base`.

    None as a value says that the resolved state has no event for a key of the base.

    `events` holds what is loaded. MissingEvents names all further ones that can be foreseen: the full
    conflicted set and its auth events, and, once the former are there, those entries of the unconflicted
    state that the auth rules read for them. So loading and asking again comes to an end after two rounds. An
    event that cannot be had goes into `absent`, and is passed over wherever it is named.

    `rejected`: events that neither enter the state nor authorise anything, which are at least those that
    were rejected on account of their auth events. The specification lets an event that was rejected only by
    the state before it still win; a server for which rejected is rejected for ever names it here too.
    Source: "Rejected events".

    `refused`, where it is given, is filled with what the rules refuse here, and why. The resolved state may
    have such an event all the same, where all forks have it, or where version 1 has to take one.
    """
    if version.state_resolution is StateResolution.V1:
        return _changes(conflicts, ReplayV1(version, conflicts, events, rejected, absent, refused).settle())
    return _changes(conflicts, _Replay(version, conflicts, events, graph, rejected, absent, refused).replay())


def _changes(conflicts: Conflicts[Ref], state: Mapping[StateKey, Ref]) -> dict[StateKey, Ref | None]:
    """What the resolved state has other than the base; `state`: what the replay came to."""
    resolved: dict[StateKey, Ref | None] = dict(conflicts.agreed)
    for key in conflicts.conflicted:
        resolved[key] = state.get(key)
    resolved.update((key, ref) for key, ref in state.items() if conflicts.unconflicted(key) is None)
    return {key: ref for key, ref in resolved.items() if ref != conflicts.base.get(key)}


@dataclass(slots=True, eq=False)
class _Replay(Generic[Ref]):
    """One resolution: what it reads, and the state that the replay has built so far."""

    version: RoomVersion
    conflicts: Conflicts[Ref]
    events: Mapping[Ref, Pdu]
    graph: AuthGraph[Ref]
    rejected: Container[Ref]
    absent: Container[Ref]
    refused: dict[Ref, str] | None
    state: dict[StateKey, Ref] = field(default_factory=dict)
    """What was applied: on top of the unconflicted state map in version 2, of nothing in version 2.1."""
    keys_read: dict[Ref, list[StateKey]] = field(default_factory=dict)
    """For each event to replay the keys of the state that the auth rules read."""
    create: Pdu | None = None

    @property
    def starts_empty(self) -> bool:
        return self.version.state_resolution is StateResolution.V2_1

    def replay(self) -> dict[StateKey, Ref]:
        """What is in the state at the end. Raises MissingEvents."""
        if self.conflicts.full_conflicted_set:
            self._require_events()
            self.create = self._find_create()
            self._replay()
        return self.state

    def _require_events(self) -> None:
        """Note what the auth rules read for each event; raise MissingEvents for what is not loaded."""
        conflicts, events = self.conflicts, self.events
        needed = set(conflicts.full_conflicted_set)
        for ref in conflicts.full_conflicted_set:
            needed.update(self.graph.auth_events(ref))
        keys_read = {CREATE} if self.starts_empty else {CREATE, POWER_LEVELS, JOIN_RULES}
        for ref in conflicts.full_conflicted_set:
            event = events.get(ref)
            if event is not None:
                keys = auth_state_keys(self.version, event.type, event.sender, event.state_key, event.content)
                self.keys_read[ref] = keys
                if not self.starts_empty:
                    keys_read.update(keys)
        unconflicted = (conflicts.unconflicted(key) for key in keys_read)
        needed.update(entry for entry in unconflicted if entry is not None)
        missing = {ref for ref in needed if ref not in events and ref not in self.absent}
        if missing:
            raise MissingEvents(missing)

    def _find_create(self) -> Pdu | None:
        """The create event: in the unconflicted state, in conflict, or, where it names the room, anywhere."""
        ref = self.conflicts.unconflicted(CREATE)
        if ref is not None and ref in self.events:
            return self.events[ref]
        replayed = [self.events[ref] for ref in self.keys_read]
        creates = [event for event in replayed if (event.type, event.state_key) == CREATE]
        if not creates and self.version.room_id_is_create_hash:
            create_ids = {create_event_id(event.room_id) for event in replayed}
            creates = [event for event in self.events.values() if event.event_id in create_ids]
        return min(creates, key=lambda event: event.event_id, default=None)

    def _replay(self) -> None:
        graph, events = self.graph, self.events
        full = {ref for ref in self.keys_read if self._belongs(events[ref])}
        if self.refused is not None:
            rule = "2" if self.version.room_id_is_create_hash else self.version.rule("2.5")
            for ref in self.keys_read.keys() - full:
                self.refused[ref] = str(NotAllowed(rule, f"it is of the room {events[ref].room_id}"))
        first = conflicted_below((ref for ref in full if is_power_event(events[ref])), full, graph)
        levels = {ref: self._sender_level(ref) for ref in first}
        self._apply(power_order(first, graph, events, levels))
        power_levels = self._current(POWER_LEVELS)
        self._apply(mainline_order(full - first, power_levels, graph, events))

    def _apply(self, order: Iterable[Ref]) -> None:
        """The iterative auth checks: what the rules allow becomes part of the state."""
        for ref in order:
            event = self.events[ref]
            if ref in self.rejected or event.state_key is None:
                continue
            why = why_refused(self.version, event, self._state_read_for(ref))
            if why is None:
                self.state[event.key] = ref
            elif self.refused is not None:
                self.refused[ref] = why

    def _state_read_for(self, ref: Ref) -> dict[StateKey, Pdu]:
        """What the auth rules read: the state so far, and for keys it lacks the event's own auth events."""
        read: dict[StateKey, Pdu] = {}
        lacking: list[StateKey] = []
        for key in self.keys_read[ref]:
            current = self._current(key)
            event = None if current is None else self._usable(current)
            if event is not None:
                read[key] = event
            else:
                lacking.append(key)
        if lacking:
            own = self._own_auth_events(ref)
            read.update((key, own[key]) for key in lacking if key in own)
        return read

    def _current(self, key: StateKey) -> Ref | None:
        ref = self.state.get(key)
        return self.conflicts.unconflicted(key) if ref is None and not self.starts_empty else ref

    def _own_auth_events(self, ref: Ref) -> dict[StateKey, Pdu]:
        """An event's auth events; where the room ID stands for the create event, that too."""
        own: dict[StateKey, Pdu] = {}
        if self.version.room_id_is_create_hash and self.create is not None:
            own[CREATE] = self.create
        for auth_ref in self.graph.auth_events(ref):
            event = self._usable(auth_ref)
            if event is not None and event.state_key is not None:
                own[event.key] = event
        return own

    def _sender_level(self, ref: Ref) -> int:
        """The power level of an event's sender by the event's own auth events."""
        event = self.events[ref]
        own = self._own_auth_events(ref)
        create = own.get(CREATE, self.create)
        if create is None:
            return 0
        return PowerLevels.of(self.version, create, own.get(POWER_LEVELS)).user_level(event.sender)

    def _usable(self, ref: Ref) -> Pdu | None:
        """An event that may authorise others; None for one that is rejected, absent or of another room."""
        event = None if ref in self.rejected else self.events.get(ref)
        return event if event is not None and self._belongs(event) else None

    def _belongs(self, event: Pdu) -> bool:
        return self.create is None or event.room_id == self.create.room_id
