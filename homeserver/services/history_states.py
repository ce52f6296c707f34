"""The states before the events of one piece of fetched history.

Each is stored as what differs from the trunk just before the gap, over the differences of a neighbour where
that takes less: so history costs what changed in it, however far it lies back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from homeserver.protocol.events import Pdu, StateKey
from homeserver.services.fork_states import ForkStates, key_numbers
from storage import room_state, state_deltas, stored_places
from storage.database import Database
from storage.nids import NidBlocks
from storage.packed_state import REMOVED, Key, StateEntries, difference
from storage.room_heads import RoomRef
from storage.room_state import StateAt
from storage.room_timeline import TimelineRow
from storage.state_deltas import ForkState


@dataclass
class HistoryStates:
    """Makes and reads states that all build on trunk(ver)."""

    database: Database
    forks: ForkStates
    nids: NidBlocks
    room: RoomRef
    ver: int
    _trunk: StateEntries = field(default_factory=dict, init=False, repr=False)
    """The entries of trunk(ver) that were asked for, 0 for none."""
    _events: dict[int, Pdu] = field(default_factory=dict, init=False, repr=False)

    async def before(self, row: TimelineRow) -> ForkState:
        """The state before an event that is stored."""
        at = row.state_before(self.room)
        state = ForkState(at.ver)
        if at.delta is not None:
            async with self.database.connection() as tx:
                delta = (await state_deltas.load(tx, [at.delta]))[at.delta]
            state = ForkState(at.ver, {}, at.delta, delta)
        return await self.stored(await self.at_version(state))

    async def at_version(self, state: ForkState) -> ForkState:
        """A state that builds on another version of the trunk, on this one."""
        if state.ver == self.ver:
            return state
        if state.ver < self.ver:
            return ForkState(self.ver, await self.forks.relative(self.room.nid, state, self.ver))
        async with self.database.connection() as tx:
            later = await room_state.changed(tx, self.room.nid, self.ver, state.ver)
        return ForkState(self.ver, later | state.differences())

    async def of_entries(self, entries: StateEntries, near: ForkState) -> ForkState:
        """The state of which these are all entries. `near`: a stored state that is much like it."""
        async with self.database.connection() as tx:
            below = await room_state.whole(tx, StateAt(self.room.nid, self.ver, near.over_id))
        return await self.stored(replace(near, own=difference(below, entries)))

    async def merged(self, states: Sequence[ForkState]) -> ForkState:
        """The state that several come to."""
        first, *others = states
        if all(state.over_id == first.over_id and state.own == first.own for state in others):
            return first
        overlay = await self.forks.resolve(self.room, self.ver, states)
        near = replace(first, own={})
        below = near.differences()
        own = {key: nid for key, nid in overlay.items() if below.get(key) != nid}
        as_in_trunk = below.keys() - overlay.keys()
        await self._read_trunk(as_in_trunk)
        own |= {key: self._trunk[key] for key in as_in_trunk}
        return replace(near, own=own)

    async def stored(self, state: ForkState) -> ForkState:
        """The same state, all of whose differences have a row."""
        if not state.own:
            return state
        await self.nids.reserve(1)
        row = state_deltas.row_of(state, self.nids.take(), self.room.nid)
        assert row is not None
        async with self.database.connection() as tx:
            delta_id = await state_deltas.store(tx, row)
            delta = (await state_deltas.load(tx, [delta_id]))[delta_id]
        return ForkState(self.ver, {}, delta_id, delta)

    async def events(self, state: ForkState, keys: Collection[StateKey]) -> dict[StateKey, Pdu]:
        """The events of some keys in a state."""
        numbers = await key_numbers(self.forks.dictionaries, keys)
        nids: dict[StateKey, int] = {}
        unchanged: dict[StateKey, Key] = {}
        for name, key in numbers.items():
            nid = state.own.get(key)
            if nid is None and state.over is not None:
                nid = state.over.get(key)
            if nid is None:
                unchanged[name] = key
            else:
                nids[name] = nid
        await self._read_trunk(unchanged.values())
        nids |= {name: self._trunk[key] for name, key in unchanged.items()}
        nids = {name: nid for name, nid in nids.items() if nid != REMOVED}
        if missing := set(nids.values()) - self._events.keys():
            async with self.database.connection() as tx:
                bodies = await stored_places.bodies_by_nid(tx, self.room, missing)
            self._events |= {nid: body.pdu for nid, body in bodies.items()}
        return {name: self._events[nid] for name, nid in nids.items()}

    async def _read_trunk(self, keys: Collection[Key]) -> None:
        """Learn what trunk(ver) has for some keys."""
        if missing := [key for key in keys if key not in self._trunk]:
            async with self.database.connection() as tx:
                found = await room_state.of_keys(tx, StateAt(self.room.nid, self.ver), missing)
            self._trunk |= dict.fromkeys(missing, REMOVED) | found
