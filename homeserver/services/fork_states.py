"""The states of a room's forks, and the one state that they come to.

A state is what differs from the trunk: so forks cost what they differ in, however large the room is.
Source: Server-Server API, "Room State Resolution"; Room Version 12, "State resolution".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from homeserver.protocol.auth_events import CREATE, JOIN_RULES, POWER_LEVELS, auth_state_keys
from homeserver.protocol.errors import MissingEvents
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.state_resolution import (
    AuthGraph,
    find_overlay_conflicts,
    resolve_conflicts,
)
from homeserver.services.bounded_cache import BoundedCache
from storage import room_state, state_deltas, stored_places
from storage.auth_graphs import AuthGraphs
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.packed_state import REMOVED, Key, StateEntries
from storage.room_heads import RoomRef
from storage.room_state import StateAt
from storage.state_deltas import Delta, ForkState
from storage.stored_places import StoredBody, StoredPlace

_Result = TypeVar("_Result")

REMEMBERED_ENTRIES: Final = 500_000
"""Of the whole states of rooms that have forked, all together."""
REMEMBERED_BODIES: Final = 20_000
REMEMBERED_DIFFERENCES: Final = 200_000
"""Of the states that were resolved, and of what they came to, all together."""
REPLAYED_HERE: Final = 20
"""A resolution that replays more events is computed in a thread: one of a hostile room takes milliseconds."""
WALKED_HERE: Final = 20_000
"""So is one in a room of more events, or with forks that differ in more: it may have to walk them all."""
MAX_ROUNDS: Final = 10
"""How often a resolution may ask for more events: two are foreseen."""


@dataclass(frozen=True, slots=True)
class NewNode:
    """An event that is not stored yet, for the auth graph."""

    nid: int
    pdu: Pdu
    auth_nids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Trunk:
    """The whole state of a room at a version."""

    ver: int
    entries: StateEntries


@dataclass(frozen=True, slots=True)
class _Question:
    """What states come to, where a room has this trunk: the same for ever, once all their events are here, as
    long as none of these is rejected."""

    room_nid: int
    now: int
    overlays: frozenset[frozenset[tuple[Key, int]]]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What some states came to."""

    entries: StateEntries
    outliers: frozenset[int]
    """The events without a place that were replayed and not rejected: should one be when it gets its place,
    there is another answer."""


@dataclass(frozen=True)
class ForkStates:
    """Reads the states of forks and resolves them. Takes connections by itself: hold none while asking.

    What is remembered of outliers holds as long as none of them is rejected, by this process or another one:
    so that is looked up each time, and nobody has to tell.
    """

    database: Database
    dictionaries: Dictionaries
    graphs: AuthGraphs
    _bodies: BoundedCache[int, StoredBody] = field(
        default_factory=lambda: BoundedCache(REMEMBERED_BODIES), init=False, repr=False
    )
    """Events that resolutions have replayed. One that was redacted meanwhile says the same to the rules; the
    flags of an outlier may be old."""
    _trunks: BoundedCache[int, _Trunk] = field(
        default_factory=lambda: BoundedCache(REMEMBERED_ENTRIES), init=False, repr=False
    )
    _resolved: BoundedCache[_Question, _Answer] = field(
        default_factory=lambda: BoundedCache(REMEMBERED_DIFFERENCES), init=False, repr=False
    )

    async def after(self, places: Iterable[StoredPlace]) -> dict[int, ForkState]:
        """The states after some events that have a place, by their numbers."""
        places = list(places)
        wanted = {place.state_delta for place in places if not place.is_sole} - {None}
        deltas: dict[int, Delta] = {}
        if wanted:
            async with self.database.connection() as tx:
                deltas = await state_deltas.load(tx, [delta for delta in wanted if delta is not None])
        states: dict[int, ForkState] = {}
        for place in places:
            if place.is_sole:
                assert place.seq is not None
                states[place.nid] = ForkState(place.seq)
                continue
            state = ForkState(place.before_ver)
            if place.state_delta is not None:
                state = ForkState(place.before_ver, {}, place.state_delta, deltas[place.state_delta])
            if place.key is not None and not place.is_rejected:
                state = state.after(place.key, place.nid)
            states[place.nid] = state
        return states

    async def resolve(self, room: RoomRef, now: int, states: Iterable[ForkState]) -> StateEntries:
        """The state that some states come to, as what differs from trunk(now): 0 for a removed key.

        `now`: the newest version of the trunk; none of the states builds on a newer one.
        """
        return await self.merge(room, now, [await self.relative(room.nid, state, now) for state in states])

    async def merge(
        self,
        room: RoomRef,
        now: int,
        overlays: Sequence[StateEntries],
        new: NewNode | None = None,
    ) -> StateEntries:
        """The state that some states come to; all of them in what differs from trunk(now).

        `new`: the event that is about to be stored, where one of the states has it.
        """
        first = overlays[0]
        if all(overlay == first for overlay in overlays[1:]):
            return first
        question = None
        if new is None:
            question = _Question(room.nid, now, frozenset(frozenset(one.items()) for one in overlays))
            known = self._resolved.get(question)
            if known is not None and not await self.rejected_among(known.outliers):
                return dict(known.entries)
        trunk = await self._trunk(room.nid, now)
        nids = {nid for overlay in overlays for nid in overlay.values() if nid != REMOVED}
        nids.update(nid for overlay in overlays for key in overlay if (nid := trunk.entries.get(key)))
        if new is not None:
            nids.discard(new.nid)
            nids.update(new.auth_nids)
        async with self.graphs.using(room.nid):
            async with self.database.connection() as tx:
                graph = await self.graphs.graph(tx, room.nid, [*trunk.entries.values(), *nids])
            if new is not None:
                is_power_levels = (new.pdu.type, new.pdu.state_key) == POWER_LEVELS
                graph.add(new.nid, new.auth_nids, is_power_levels=is_power_levels)
            work = _Resolution(self, room, trunk.entries, graph)
            resolved = await work.run(overlays, new)
        if question is not None and not work.absent:
            answer = _Answer(resolved, frozenset(work.outliers))
            size = sum(map(len, overlays)) + len(resolved) + len(answer.outliers) + 1
            self._resolved.put(question, answer, size)
        return dict(resolved)

    async def relative(self, room_nid: int, state: ForkState, now: int) -> StateEntries:
        """What differs in a state from trunk(now): 0 for a key that it lacks."""
        differences = state.differences()
        if state.ver >= now and not differences:
            return {}
        then: StateEntries = {}
        current: StateEntries = {}
        async with self.database.connection() as tx:
            if state.ver < now:
                changed = await room_state.changed_between(tx, room_nid, state.ver, now)
                then = {key: before for key, (before, _) in changed.items()}
                current = {key: after for key, (_, after) in changed.items()}
            if others := differences.keys() - then.keys():
                current |= await room_state.of_keys(tx, StateAt(room_nid, now), others)
        return {key: nid for key, nid in (then | differences).items() if current.get(key, REMOVED) != nid}

    async def overlaid(
        self,
        room: RoomRef,
        current: Mapping[StateKey, Pdu],
        keys: Collection[StateKey],
        overlay: StateEntries,
    ) -> dict[StateKey, Pdu]:
        """The events of some keys in the state that differs from the current one by an overlay.

        `current`: the current events of these keys, as far as there are any.
        """
        state = {key: current[key] for key in keys if key in current}
        numbers = await key_numbers(self.dictionaries, keys) if overlay else {}
        other = {name: overlay[key] for name, key in numbers.items() if key in overlay}
        bodies = await self.bodies(room, set(other.values()) - {REMOVED})
        for name, nid in other.items():
            state.pop(name, None)
            if nid != REMOVED:
                state[name] = bodies[nid].pdu
        return state

    async def bodies(self, room: RoomRef, nids: Collection[int]) -> dict[int, StoredBody]:
        """Events by their numbers, from memory where they are there. Only for what the rules read of them."""
        found = {nid: body for nid in nids if (body := self._bodies.get(nid)) is not None}
        if missing := set(nids) - set(found):
            async with self.database.connection() as tx:
                loaded = await stored_places.bodies_by_nid(tx, room, missing)
            for nid, body in loaded.items():
                self._bodies.put(nid, body, 1)
            found |= loaded
        return found

    async def rejected_among(self, nids: Collection[int]) -> set[int]:
        """Those of some events that are rejected by now."""
        if not nids:
            return set()
        async with self.database.connection() as tx:
            return await stored_places.rejected_among(tx, nids)

    async def _trunk(self, room_nid: int, now: int) -> _Trunk:
        """The whole state of a room at a version, which is kept up with by what changed since."""
        known = self._trunks.get(room_nid)
        if known is not None and known.ver == now:
            return known
        async with self.database.connection() as tx:
            if known is None or known.ver > now:
                entries = await room_state.whole(tx, StateAt(room_nid, now))
            else:
                changed = await room_state.changed(tx, room_nid, known.ver, now)
                entries = known.entries | changed
                for key, nid in changed.items():
                    if nid == REMOVED:
                        del entries[key]
        trunk = _Trunk(now, entries)
        self._trunks.put(room_nid, trunk, len(entries) + 1)
        return trunk


async def key_numbers(dictionaries: Dictionaries, keys: Collection[StateKey]) -> dict[StateKey, Key]:
    """The numbers of keys of state; those that nothing here names are left out."""
    types = await dictionaries.event_types.find_nids({event_type for event_type, _ in keys})
    state_keys = await dictionaries.atoms.find_nids({state_key for _, state_key in keys})
    return {
        (event_type, state_key): (types[event_type], state_keys[state_key])
        for event_type, state_key in keys
        if event_type in types and state_key in state_keys
    }


class _NumberedState(Mapping[StateKey, int]):
    """A state in numbers, asked in words. `numbers`: of every key that will be asked for."""

    def __init__(self, entries: StateEntries, numbers: Mapping[StateKey, Key]) -> None:
        self._entries = entries
        self._numbers = numbers

    def __getitem__(self, name: StateKey) -> int:
        return self._entries[self._numbers[name]]

    def __iter__(self) -> Iterator[StateKey]:
        return (name for name, key in self._numbers.items() if key in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def values(self) -> Collection[int]:  # type: ignore[override]
        """The events of the whole state, those of keys without a name here too."""
        return self._entries.values()


@dataclass
class _Resolution:
    """One resolution: its events are loaded as it asks for them."""

    forks: ForkStates
    room: RoomRef
    trunk: StateEntries
    graph: AuthGraph[int]
    numbers: dict[StateKey, Key] = field(default_factory=dict)
    events: dict[int, Pdu] = field(default_factory=dict)
    rejected: set[int] = field(default_factory=set)
    outliers: set[int] = field(default_factory=set)
    """Those that have no place, and are not rejected so far."""
    absent: set[int] = field(default_factory=set)

    async def run(self, overlays: Sequence[StateEntries], new: NewNode | None) -> StateEntries:
        names = await self._names({key for overlay in overlays for key in overlay})
        self.numbers.update(await key_numbers(self.forks.dictionaries, [CREATE, POWER_LEVELS, JOIN_RULES]))
        base = _NumberedState(self.trunk, self.numbers)
        in_words = [
            {names[key]: nid if nid != REMOVED else None for key, nid in overlay.items()}
            for overlay in overlays
        ]
        version = self.room.version
        is_long = len(self.graph) + sum(map(len, overlays)) > WALKED_HERE
        conflicts = await _computed(
            is_long, partial(find_overlay_conflicts, version, base, in_words, self.graph)
        )
        is_long = is_long or len(conflicts.full_conflicted_set) > REPLAYED_HERE
        resolution = partial(
            resolve_conflicts,
            version,
            conflicts,
            self.events,
            self.graph,
            rejected=self.rejected,
            absent=self.absent,
        )
        if new is not None:
            await self._take({new.nid: new.pdu})
        for _ in range(MAX_ROUNDS):
            try:
                changes = await _computed(is_long, resolution)
            except MissingEvents as missing:
                await self._load({ref for ref in missing.references if isinstance(ref, int)})
            else:
                return {self.numbers[name]: REMOVED if nid is None else nid for name, nid in changes.items()}
        raise RuntimeError("a state resolution asks for ever more events")

    async def _load(self, nids: set[int]) -> None:
        found = await self.forks.bodies(self.room, nids)
        self.absent |= nids - set(found)
        placeless = {nid for nid, body in found.items() if not body.has_place}
        rejected = await self.forks.rejected_among(placeless)
        self.rejected |= rejected.union(nid for nid, body in found.items() if body.is_rejected)
        self.outliers |= placeless - rejected
        await self._take({nid: body.pdu for nid, body in found.items()})

    async def _take(self, events: Mapping[int, Pdu]) -> None:
        """Take some events, and find the numbers of all that the auth rules read for them."""
        self.events.update(events)
        keys: set[StateKey] = set()
        for pdu in events.values():
            if pdu.state_key is not None:
                keys.add(pdu.key)
            keys.update(auth_state_keys(self.room.version, pdu.type, pdu.sender, pdu.state_key, pdu.content))
        self.numbers.update(await key_numbers(self.forks.dictionaries, keys - set(self.numbers)))

    async def _names(self, keys: Collection[Key]) -> dict[Key, StateKey]:
        types = await self.forks.dictionaries.event_types.texts({type_nid for type_nid, _ in keys})
        state_keys = await self.forks.dictionaries.atoms.texts({skey_nid for _, skey_nid in keys})
        names = {(type_nid, skey_nid): (types[type_nid], state_keys[skey_nid]) for type_nid, skey_nid in keys}
        self.numbers.update({name: key for key, name in names.items()})
        return names


async def _computed(is_long: bool, computation: Callable[[], _Result]) -> _Result:
    """What a computation comes to: beside the event loop if it may be long."""
    return await asyncio.to_thread(computation) if is_long else computation()
