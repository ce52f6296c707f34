"""AuthGraph: which events of a room name which as their auth events, without the events themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from homeserver.protocol.auth_events import POWER_LEVELS
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId

Ref = TypeVar("Ref", bound=Hashable)
"""What names an event: an event ID, or the short number that a server's storage gave it."""


class AuthGraph(Generic[Ref]):
    """The auth events of a room's state events, both ways round, and which of them set power levels.

    Grows by one event at a time, at a cost of its own auth events only. An event that is named but was not
    added counts as one without auth events. Every walk uses a stack and a set of what it has seen: it ends
    even where hostile or invented data holds a cycle.
    """

    __slots__ = (
        "_auth_depths",
        "_auth_events",
        "_cited_by",
        "_depths_are_stale",
        "_has_cycles",
        "_power_levels",
    )

    def __init__(self) -> None:
        self._auth_events: dict[Ref, tuple[Ref, ...]] = {}
        self._cited_by: dict[Ref, list[Ref]] = {}
        self._power_levels: set[Ref] = set()
        self._auth_depths: dict[Ref, int] = {}
        self._depths_are_stale = False
        self._has_cycles = False

    def __contains__(self, ref: object) -> bool:
        return ref in self._auth_events

    def __len__(self) -> int:
        return len(self._auth_events)

    def add(self, ref: Ref, auth_events: Iterable[Ref], *, is_power_levels: bool) -> None:
        """Add an event; one that is there already stays as it is.

        `auth_events` in the event's own order. `is_power_levels`: it is an m.room.power_levels event with
        an empty state key. Adding after their auth events is quickest; the other order is right too.
        """
        if ref in self._auth_events:
            return
        auth_events = tuple(auth_events)
        self._auth_events[ref] = auth_events
        depth = 0
        for auth_event in auth_events:
            self._cited_by.setdefault(auth_event, []).append(ref)
            depth = max(depth, self._auth_depths.get(auth_event, 0))
        if is_power_levels:
            self._power_levels.add(ref)
        self._auth_depths[ref] = depth + 1
        citing = self._cited_by.get(ref)
        if citing is not None and any(self._auth_depths[one] <= depth + 1 for one in citing):
            self._depths_are_stale = True

    @property
    def is_whole(self) -> bool:
        """Whether it holds all events that are named as auth events."""
        return self._cited_by.keys() <= self._auth_events.keys()

    def auth_events(self, ref: Ref) -> tuple[Ref, ...]:
        """The auth events of an event."""
        return self._auth_events.get(ref, ())

    def cited_by(self, ref: Ref) -> Sequence[Ref]:
        """The events that name this one among their auth events."""
        return self._cited_by.get(ref, ())

    def power_levels_of(self, ref: Ref) -> Ref | None:
        """The m.room.power_levels event among an event's auth events."""
        for auth_event in self._auth_events.get(ref, ()):
            if auth_event in self._power_levels:
                return auth_event
        return None

    def auth_depth(self, ref: Ref) -> int:
        """The length of the longest path from an event to the end of its auth chain.

        Computed, and never the event's own `depth`, about which a server can lie. An event that stands on
        a cycle, or above one, is deeper than all others.
        """
        self._refresh_depths()
        return self._auth_depths.get(ref, 0)

    @property
    def has_cycles(self) -> bool:
        """Whether some event is in its own auth chain."""
        self._refresh_depths()
        return self._has_cycles

    def auth_chain(self, refs: Collection[Ref]) -> set[Ref]:
        """The union of the events' auth chains; an event itself is in it only if another one reaches it."""
        auth_events = self._auth_events
        chain: set[Ref] = set()
        stack = list(refs)
        while stack:
            for auth_event in auth_events.get(stack.pop(), ()):
                if auth_event not in chain:
                    chain.add(auth_event)
                    stack.append(auth_event)
        return chain

    def _refresh_depths(self) -> None:
        if not self._depths_are_stale:
            return
        depths: dict[Ref, int] = {}
        waiting = {ref: len(auth_events) for ref, auth_events in self._auth_events.items()}
        ready = deque(ref for ref, count in waiting.items() if count == 0)
        ready.extend(ref for ref in self._cited_by if ref not in waiting)
        while ready:
            ref = ready.popleft()
            below = (depths[auth_event] for auth_event in self._auth_events.get(ref, ()))
            depths[ref] = 1 + max(below, default=0) if ref in waiting else 0
            for citing in self._cited_by.get(ref, ()):
                waiting[citing] -= 1
                if waiting[citing] == 0:
                    ready.append(citing)
        above_all = len(self._auth_events) + 1
        for ref in waiting:
            depths.setdefault(ref, above_all)
        self._has_cycles = above_all in depths.values()
        self._auth_depths = depths
        self._depths_are_stale = False


def auth_graph_of(events: Mapping[EventId, Pdu]) -> AuthGraph[EventId]:
    """The auth graph of events that are all at hand."""
    graph: AuthGraph[EventId] = AuthGraph()
    for event_id, event in events.items():
        is_power_levels = (event.type, event.state_key) == POWER_LEVELS
        graph.add(event_id, event.auth_events, is_power_levels=is_power_levels)
    return graph
