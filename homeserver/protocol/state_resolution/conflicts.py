"""What the forks of a room disagree about: the full conflicted set.

In version 1 of the algorithm these are the events of a key for which the states name several; a state that
names none has no say. From version 2 on that is a conflict too, and auth events are replayed with them.
Source: "State resolution" of room versions 1, 2 and 12.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import compress, filterfalse
from operator import ne
from typing import Generic

from homeserver.protocol.events import StateKey
from homeserver.protocol.room_versions import RoomVersion, StateResolution
from homeserver.protocol.state_resolution.auth_graph import AuthGraph, Ref


@dataclass(frozen=True, slots=True)
class Conflicts(Generic[Ref]):
    """What the forks disagree about.

    The unconflicted state map is `base` with `agreed` on top and without the keys of `conflicted`.
    """

    base: Mapping[StateKey, Ref]
    """The state that the forks were compared with; never copied."""
    agreed: Mapping[StateKey, Ref | None]
    """Where all forks say the same and the base something else; None where none of them has the key."""
    conflicted: Mapping[StateKey, frozenset[Ref]]
    """The conflicted state set, by key."""
    full_conflicted_set: frozenset[Ref]
    """The events that have to be replayed: their bodies are what `resolve_conflicts` needs first."""

    def unconflicted(self, key: StateKey) -> Ref | None:
        """The entry of the unconflicted state map; None for a key that it lacks."""
        if key in self.conflicted:
            return None
        return self.agreed[key] if key in self.agreed else self.base.get(key)


def find_conflicts(
    version: RoomVersion, states: Sequence[Mapping[StateKey, Ref]], graph: AuthGraph[Ref]
) -> Conflicts[Ref]:
    """Compare the whole states of a room's forks, one map for each; there is at least one.

    `graph` holds the states' auth chains.
    """
    return find_overlay_conflicts(version, states[0], overlays_of(states), graph)


def overlays_of(states: Sequence[Mapping[StateKey, Ref]]) -> list[Mapping[StateKey, Ref | None]]:
    """What differs in each of some whole states from the first one: None for a key that it lacks."""
    base = states[0]
    overlays: list[Mapping[StateKey, Ref | None]] = []
    for state in states:
        overlay: dict[StateKey, Ref | None] = {}
        if state is not base:
            differs = map(ne, map(base.get, state), state.values())
            overlay = dict(compress(state.items(), differs))
            overlay.update(dict.fromkeys(filterfalse(state.__contains__, base)))
        overlays.append(overlay)
    return overlays


def find_overlay_conflicts(
    version: RoomVersion,
    base: Mapping[StateKey, Ref],
    overlays: Sequence[Mapping[StateKey, Ref | None]],
    graph: AuthGraph[Ref],
) -> Conflicts[Ref]:
    """Compare forks that differ from a base in a few keys: one overlay for each fork, {} for the base itself.

    None in an overlay says that the fork has no event for a key that the base has. The work depends on the
    overlays and the auth chains of what is in conflict; of the base at most the values are put into a set.
    """
    agreed: dict[StateKey, Ref | None] = {}
    conflicted: dict[StateKey, frozenset[Ref]] = {}
    is_v1 = version.state_resolution is StateResolution.V1
    for key in {key for overlay in overlays for key in overlay}:
        values = {overlay[key] if key in overlay else base.get(key) for overlay in overlays}
        if is_v1 and len(values) > 1:
            values.discard(None)
        if len(values) > 1:
            conflicted[key] = frozenset(ref for ref in values if ref is not None)
        else:
            agreed[key] = values.pop()
    if not conflicted:
        return Conflicts(base, agreed, {}, frozenset())
    if is_v1:
        return Conflicts(
            base, agreed, conflicted, frozenset(ref for refs in conflicted.values() for ref in refs)
        )

    differing: list[set[Ref]] = []
    for overlay in overlays:
        refs = (overlay[key] if key in overlay else base.get(key) for key in conflicted)
        differing.append({ref for ref in refs if ref is not None})
    common = set(base.values())
    common.difference_update(base[key] for key in (*agreed, *conflicted) if key in base)
    common.update(ref for ref in agreed.values() if ref is not None)

    conflicted_set = frozenset(ref for refs in conflicted.values() for ref in refs)
    full = conflicted_set | auth_difference(graph, differing, common)
    if version.state_resolution is StateResolution.V2_1:
        full |= conflicted_state_subgraph(graph, conflicted_set)
    return Conflicts(base, agreed, conflicted, full)


def auth_difference(
    graph: AuthGraph[Ref], differing: Sequence[Collection[Ref]], common: AbstractSet[Ref]
) -> set[Ref]:
    """The events that are in the auth chain of some state but not of every one.

    `common`: the events that are in all states; `differing`: for each state its other events. All states are
    walked together, the deepest events first, so each event is met once, and only down to where all chains
    are the same. Those of the common events, which may be a room's whole membership, are not walked: they are
    in every state's chain, and whether an event is in one of them is found from below.
    """
    everywhere = (1 << len(differing)) - 1
    own: dict[Ref, int] = {}
    for index, refs in enumerate(differing):
        for ref in refs:
            own[ref] = own.get(ref, 0) | 1 << index
    holders = dict.fromkeys(own, 0)
    """For each event that was met the states in whose chains it is, one bit for each."""
    waiting: dict[int, list[Ref]] = {}
    for ref in own:
        waiting.setdefault(graph.auth_depth(ref), []).append(ref)
    depths = [-depth for depth in waiting]
    heapify(depths)
    is_waiting = set(own)
    undecided = len(own)
    """How many of those that wait are not known to be in all chains."""
    below = _Below(graph, common)
    while undecided:
        # Events on a cycle are equally deep: there one may have its turn again.
        deepest = -heappop(depths)
        level = waiting[deepest]
        while level:
            ref = level.pop()
            is_waiting.remove(ref)
            held = holders[ref]
            if held != everywhere:
                undecided -= 1
                if held and ref in below:
                    held = holders[ref] = everywhere
            handed_on = everywhere if ref in common else held | own.get(ref, 0)
            for auth_event in graph.auth_events(ref):
                before = holders.get(auth_event, 0)
                after = before | handed_on
                if after == before:
                    continue
                holders[auth_event] = after
                if auth_event in is_waiting:
                    undecided -= after == everywhere
                    continue
                is_waiting.add(auth_event)
                undecided += after != everywhere
                depth = graph.auth_depth(auth_event)
                if depth in waiting:
                    waiting[depth].append(auth_event)
                else:
                    waiting[depth] = [auth_event]
                    heappush(depths, -depth)
        del waiting[deepest]
    return {ref for ref, held in holders.items() if held not in (0, everywhere)}


def conflicted_state_subgraph(graph: AuthGraph[Ref], conflicted: AbstractSet[Ref]) -> set[Ref]:
    """The events on all paths along auth events from one conflicted event to another, the latter left out.

    Together with the conflicted state set this is what the specification calls by the name.
    Source: Room Version 12, "Definitions", "Conflicted state subgraph".
    """
    lowest = min(map(graph.auth_depth, conflicted), default=0)
    citing_on_the_way: dict[Ref, list[Ref]] = {}
    seen = set(conflicted)
    stack = list(conflicted)
    while stack:
        ref = stack.pop()
        for auth_event in graph.auth_events(ref):
            if graph.auth_depth(auth_event) < lowest:
                continue  # below all conflicted events: no path from here leads to one
            citing_on_the_way.setdefault(auth_event, []).append(ref)
            if auth_event not in seen:
                seen.add(auth_event)
                stack.append(auth_event)

    subgraph: set[Ref] = set()
    stack = list(conflicted)
    while stack:
        for ref in citing_on_the_way.get(stack.pop(), ()):
            if ref not in subgraph:
                subgraph.add(ref)
                stack.append(ref)
    return subgraph


class _Below(Generic[Ref]):
    """The events that are in the auth chain of one of some common events, each found when it is asked for.

    A depth-first walk towards the newer events that stops at the first common one. Of every event it has
    met it knows the answer, so all walks together cross each edge once at most. On a cycle no event would be
    the first one to know, so a graph with cycles is walked from above.
    """

    __slots__ = ("_below", "_common", "_graph", "_seen")

    def __init__(self, graph: AuthGraph[Ref], common: AbstractSet[Ref]) -> None:
        self._graph = graph
        self._common = common
        self._below: set[Ref] = graph.auth_chain(common) if graph.has_cycles else set()
        self._seen: set[Ref] = set()

    def __contains__(self, start: Ref) -> bool:
        graph, common, below, seen = self._graph, self._common, self._below, self._seen
        if start in below:
            return True
        if start in seen or graph.has_cycles:
            return False
        seen.add(start)
        path: list[tuple[Ref, Iterator[Ref]]] = [(start, iter(graph.cited_by(start)))]
        reached = not common.isdisjoint(graph.cited_by(start))
        while path and not reached:
            for ref in path[-1][1]:
                if ref in common or ref in below:
                    reached = True
                    break
                if ref not in seen:
                    seen.add(ref)
                    path.append((ref, iter(graph.cited_by(ref))))
                    reached = not common.isdisjoint(graph.cited_by(ref))
                    break
            else:
                path.pop()
        below.update(ref for ref, _ in path)
        return reached
