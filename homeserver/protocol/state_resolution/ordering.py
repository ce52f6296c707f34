"""The two orders in which conflicted events are replayed.

Source: Room Version 2, "State resolution", "Definitions": power events, reverse topological power ordering
and mainline ordering.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final, Generic

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
    mainline = _Mainline(power_levels, graph)

    def entry(ref: Ref) -> tuple[float, int, str]:
        event = events[ref]
        return -mainline.position(ref), event.origin_server_ts, event.event_id

    return sorted(refs, key=entry)


class _Mainline(Generic[Ref]):
    """The mainline of a power levels event, as far back as events have been asked about.

    A room may have changed its power levels a hundred thousand times, while what is in conflict is new.
    """

    __slots__ = ("_depth", "_graph", "_length", "_next", "_positions")

    def __init__(self, power_levels: Ref | None, graph: AuthGraph[Ref]) -> None:
        self._graph = graph
        self._next = power_levels
        self._length = 0
        self._depth: float = inf
        """That of the oldest event so far: what is less deep and not on the mainline does not lead there."""
        self._positions: dict[Ref, float] = {}
        """Of the mainline so far, and of all power levels events that were passed on the way to it."""

    def position(self, ref: Ref) -> float:
        """The mainline position of an event; infinite where it has no ancestor there."""
        graph, positions = self._graph, self._positions
        passed: set[Ref] = set()
        ancestor = graph.power_levels_of(ref)
        while ancestor is not None and ancestor not in passed:
            self._extend(graph.auth_depth(ancestor))
            if ancestor in positions or self._is_past(ancestor):
                break
            passed.add(ancestor)
            ancestor = graph.power_levels_of(ancestor)
        position = inf if ancestor is None else positions.get(ancestor, inf)
        positions.update(dict.fromkeys(passed, position))
        return position

    def _extend(self, depth: int) -> None:
        """Go back to where no older event can be so deep."""
        graph, positions = self._graph, self._positions
        while self._next is not None and graph.auth_depth(self._next) >= depth:
            positions[self._next] = self._length
            self._length += 1
            self._depth = graph.auth_depth(self._next)
            self._next = graph.power_levels_of(self._next)
            if self._next in positions:
                self._next = None

    def _is_past(self, ref: Ref) -> bool:
        """Whether an event that is not on the mainline is older than all of it."""
        return self._next is None and self._graph.auth_depth(ref) < self._depth
