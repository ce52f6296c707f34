"""The two orders in which conflicted events are replayed.

Source: Room Version 2, "State resolution", "Definitions": power events, reverse topological power ordering
and mainline ordering.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from heapq import heapify, heappop, heappush
from typing import Final

from homeserver.protocol.auth_events import CREATE, JOIN_RULES, POWER_LEVELS
from homeserver.protocol.events import Pdu
from homeserver.protocol.state_resolution.auth_graph import AuthGraph, Ref

_POWER_KEYS: Final = frozenset({CREATE, POWER_LEVELS, JOIN_RULES})


def is_power_event(event: Pdu) -> bool:
    """Whether an event may take from somebody the ability to do something in the room.

    The create event counts as one: should it be in conflict, everything else comes after it.
    """
    if event.type == "m.room.member":
        return event.membership in ("leave", "ban") and event.sender != event.state_key
    return (event.type, event.state_key) in _POWER_KEYS


def conflicted_below(
    power_events: Iterable[Ref], full_conflicted_set: AbstractSet[Ref], graph: AuthGraph[Ref]
) -> set[Ref]:
    """The power events and what authorised them, as far as auth events lead from conflicted to conflicted."""
    found = set(power_events)
    stack = list(found)
    while stack:
        for auth_event in graph.auth_events(stack.pop()):
            if auth_event in full_conflicted_set and auth_event not in found:
                found.add(auth_event)
                stack.append(auth_event)
    return found


def power_order(
    refs: AbstractSet[Ref],
    graph: AuthGraph[Ref],
    events: Mapping[Ref, Pdu],
    sender_levels: Mapping[Ref, int],
) -> list[Ref]:
    """The reverse topological power ordering, earliest first, by Kahn's algorithm.

    Of the events all whose auth events had their turn the next one is that of the most powerful sender,
    then the oldest by its timestamp, then the one with the least event ID. An event on a cycle, or above
    one, never has its turn and is left out.
    """
    waiting = dict.fromkeys(refs, 0)
    citing: dict[Ref, list[Ref]] = {}
    for ref in refs:
        for auth_event in set(graph.auth_events(ref)):
            if auth_event in refs:
                waiting[ref] += 1
                citing.setdefault(auth_event, []).append(ref)

    def entry(ref: Ref) -> tuple[int, int, str, Ref]:
        event = events[ref]
        return -sender_levels[ref], event.origin_server_ts, event.event_id, ref

    ready = [entry(ref) for ref, count in waiting.items() if count == 0]
    heapify(ready)
    order: list[Ref] = []
    while ready:
        ref = heappop(ready)[3]
        order.append(ref)
        for later in citing.get(ref, ()):
            waiting[later] -= 1
            if waiting[later] == 0:
                heappush(ready, entry(later))
    return order


def mainline_order(
    refs: Iterable[Ref], power_levels: Ref | None, graph: AuthGraph[Ref], events: Mapping[Ref, Pdu]
) -> list[Ref]:
    """The mainline ordering based on a power levels event, or on none, which leaves timestamp and event ID.

    The position of an event is how many steps its nearest ancestor on the mainline is older than
    `power_levels`; without such an ancestor it is past the end of the mainline. Greater positions come first.
    """
    positions: dict[Ref, int] = {}
    ancestor = power_levels
    while ancestor is not None and ancestor not in positions:
        positions[ancestor] = len(positions)
        ancestor = graph.power_levels_of(ancestor)
    past_the_end = len(positions)

    def entry(ref: Ref) -> tuple[int, int, str]:
        event = events[ref]
        return -_position(ref, positions, past_the_end, graph), event.origin_server_ts, event.event_id

    return sorted(refs, key=entry)


def _position(ref: Ref, positions: dict[Ref, int], past_the_end: int, graph: AuthGraph[Ref]) -> int:
    """The mainline position of an event; notes that of every power levels event on the way."""
    walked: set[Ref] = set()
    ancestor = graph.power_levels_of(ref)
    while ancestor is not None and ancestor not in positions and ancestor not in walked:
        walked.add(ancestor)
        ancestor = graph.power_levels_of(ancestor)
    position = past_the_end if ancestor is None else positions.get(ancestor, past_the_end)
    for passed in walked:
        positions[passed] = position
    return position
