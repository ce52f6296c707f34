"""Storing a room that one of our users enters from outside: its state first, then the join.

Until the join is published nobody looks at what is stored before; a later attempt takes its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from federation.outbound.room_requests import JoinAnswer
from homeserver.errors import Unavailable
from homeserver.protocol.auth_events import CREATE
from homeserver.protocol.canonical_json import canonical_event
from homeserver.protocol.errors import InvalidEvent
from homeserver.protocol.events import Pdu, StateKey, stored_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, server_in
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.clock import Clock
from homeserver.services.joined_states import GivenState, JoinedState, TwoLists, check_joined_state
from homeserver.services.own_members import brought_in, check_up_to_date
from homeserver.services.pdu_gate import PduGate, RefusedPdu
from homeserver.services.state_snapshots import StateSnapshots
from storage import outliers, room_imports, room_state, shared_rooms, stored_places
from storage.database import Database
from storage.decisions import Decision, EventsStored, UnknownRoom
from storage.dictionaries import Dictionaries
from storage.event_flags import EventFlag
from storage.memberships import Membership
from storage.nids import NidBlocks
from storage.outliers import Outlier
from storage.packed_state import REMOVED, StateEntries, difference
from storage.persister import Persister
from storage.placement import Placed
from storage.room_heads import RoomHead, RoomRef, StoredEvent
from storage.room_imports import Lease, Member
from storage.room_state import StateAt
from storage.state_snapshots import MIN_CHANGES

log = logging.getLogger(__name__)

MAX_ROUNDS: Final = 10
"""How often publishing a join may be overtaken."""
MARKER_TYPE: Final = "org.lair-chat.marker"
"""The type of events that are no events of the room: they only carry a change of its state."""


class RoomIsHere(Exception):
    """The room is here meanwhile: who wants to join it can do so without asking other servers."""

    def __init__(self, room_id: RoomId) -> None:
        super().__init__(f"{room_id} is here meanwhile")


class _Moved(Exception):
    """The room has a newer head."""

    def __init__(self, room_id: RoomId) -> None:
        super().__init__(f"{room_id} has a newer head")


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The numbers of all that a state names."""

    events: Mapping[EventId, int]
    types: Mapping[str, int]
    atoms: Mapping[str, int]

    def entries(self, state: Mapping[StateKey, Pdu]) -> StateEntries:
        """The state in numbers."""
        return {
            (self.types[event_type], self.atoms[state_key]): self.events[pdu.event_id]
            for (event_type, state_key), pdu in state.items()
        }

    def members(self, state: Mapping[StateKey, Pdu], own_server: ServerName) -> list[Member]:
        """What the users of other servers are in the state."""
        return [
            Member(
                self.atoms[user_id],
                self.atoms[server_in(user_id)],
                Membership.of(pdu.membership),
                self.events[pdu.event_id],
            )
            for (event_type, user_id), pdu in state.items()
            if event_type == "m.room.member" and server_in(user_id) != own_server
        ]


@dataclass(frozen=True)
class JoinImports:
    """Takes over a room from the answer to a join."""

    database: Database
    dictionaries: Dictionaries
    persister: Persister
    gate: PduGate
    snapshots: StateSnapshots
    server_name: ServerName
    clock: Clock
    _nids: NidBlocks = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_nids", NidBlocks(self.database))

    async def check(self, room: RoomRef, join: Pdu, answer: JoinAnswer) -> JoinedState:
        """How much holds of what a resident server says of the room.

        Raises InvalidEvent where the answer is not one about this room, NotAllowed where its state does not
        let the join in.
        """
        lists = await asyncio.to_thread(TwoLists.of, answer.state, answer.auth_chain)
        outcomes = await self.gate.verify(room.version, lists.events, pushed=False)
        _tell_refused(room, outcomes)
        given = await asyncio.to_thread(GivenState.of, lists, outcomes)
        async with self.database.connection() as tx:
            known = await stored_places.bodies(tx, room, given.named())
        return await asyncio.to_thread(check_joined_state, room.version, join, given, known)

    async def enter(self, room: RoomRef, join: Pdu, joined: JoinedState, lease: Lease) -> None:
        """Store a room that this server is not in, and publish the join.

        What the state says of other users of ours is published with the join: it changes what they see, but
        brings none of them back into a room that they have left. Raises RoomIsHere where this server has come
        into the room meanwhile, Unavailable where the lease is lost, and InvalidEvent where it was in the
        room before, and the room was made by another event then or the state is older than that.
        """
        try:
            create = await self.persister.consider(room.room_id, lambda head: head.event(*CREATE))
        except UnknownRoom:
            await self._begin(room, join, joined, lease)
        else:
            if create is None or create.event_id != joined.state[CREATE].event_id:
                raise InvalidEvent("the room that is known here has another create event")
            await self._come_back(room, join, joined, lease)
        if len(joined.state) > MIN_CHANGES:
            self.snapshots.consider(room.nid)

    async def _begin(self, room: RoomRef, join: Pdu, joined: JoinedState, lease: Lease) -> None:
        """Store a room that has no live event: the state before the join is trunk(0)."""
        async with room_imports.leased(self.database, lease) as tx:
            await room_imports.clear(tx, room.nid)
        numbers = await self._store_events(room, join, joined)
        entries, members = await asyncio.to_thread(
            lambda: (numbers.entries(joined.state), numbers.members(joined.state, self.server_name))
        )
        await room_imports.write_state(self.database, lease, entries)
        await room_imports.write_members(self.database, lease, members)
        servers = {member.server_nid for member in members if member.membership is Membership.JOIN}
        async with room_imports.leased(self.database, lease) as tx:
            await room_imports.write_servers(tx, room.nid, servers)
        of_ours = {
            key: StoredEvent(numbers.events[pdu.event_id], pdu)
            for key, pdu in joined.state.items()
            if key[0] == "m.room.member" and server_in(key[1]) == self.server_name
        }

        async def publish() -> None:
            placed = await self._place(room, join, numbers, lease)
            placed = replace(placed, changes={**of_ours, join.key: StoredEvent(placed.nid, join)})
            await self.persister.append(
                room.room_id, _only_at(0, [placed], otherwise=RoomIsHere), joining=True
            )

        await _until_placed(publish)

    async def _come_back(self, room: RoomRef, join: Pdu, joined: JoinedState, lease: Lease) -> None:
        """Store what has become of a room since this server left it.

        A marker that nobody sees changes the state; the join after it is the only forward extremity:
        nothing of what was before is resolved against what is now. Raises InvalidEvent where the server that
        told the state lacks what users of ours did in the room.
        """
        numbers = await self._store_events(room, join, joined)

        async def publish() -> None:
            head = await self.persister.newest_head(room.room_id)  # before it is asked whether we are there
            seq, extremities = head.seq, frozenset(one.event_id for one in head.extremities)
            placed = replace(await self._place(room, join, numbers, lease), covers=extremities)
            changes = await self._changes_since(room, seq, joined, numbers)
            of_ours = brought_in(changes, join, self.server_name)
            await check_up_to_date(self.database, room, of_ours, self.server_name)
            marker = await self._marker(room, join, seq, changes, frozenset(of_ours))
            await self.persister.append(room.room_id, _only_at(seq, [marker, placed], otherwise=_Moved))

        await _until_placed(publish)

    async def _changes_since(
        self, room: RoomRef, seq: int, joined: JoinedState, numbers: _Numbers
    ) -> dict[StateKey, StoredEvent | None]:
        """How the state before the join differs from the one at a room_seq."""
        async with self.database.connection() as tx:
            before = await room_state.whole(tx, StateAt(room.nid, seq))
        entries = numbers.entries(joined.state)
        differences = difference(before, entries)
        gone = [key for key, nid in differences.items() if nid == REMOVED]
        types = await self.dictionaries.event_types.texts({type_nid for type_nid, _ in gone})
        state_keys = await self.dictionaries.atoms.texts({skey_nid for _, skey_nid in gone})
        changes: dict[StateKey, StoredEvent | None] = {
            (types[type_nid], state_keys[skey_nid]): None for type_nid, skey_nid in gone
        }
        for key, (name, pdu) in zip(entries, joined.state.items(), strict=True):
            if key in differences:
                changes[name] = StoredEvent(differences[key], pdu)
        return changes

    async def _marker(
        self,
        room: RoomRef,
        join: Pdu,
        seq: int,
        changes: Mapping[StateKey, StoredEvent | None],
        keeps_out: frozenset[StateKey],
    ) -> Placed:
        """The event that stands for all that happened while this server was not in the room."""
        await self._nids.reserve(1)
        json: JsonObject = {
            "type": MARKER_TYPE,
            "sender": join.sender,
            "content": {},
            "prev_events": [],
            "auth_events": [],
            "depth": join.depth,
            "origin_server_ts": self.clock(),
        }
        event_id = EventId(f"$marker-{room.nid}-{seq + 1}")  # no text that stands for a hash
        return Placed(
            stored_pdu(room.version, room.room_id, event_id, json),
            self._nids.take(),
            flags=EventFlag.HIDDEN,
            auth_nids=(),
            prev_nids=(),
            covers=frozenset(),
            is_extremity=False,
            changes=changes,
            keeps_out=keeps_out,
        )

    async def _place(self, room: RoomRef, join: Pdu, numbers: _Numbers, lease: Lease) -> Placed:
        """The place of the join: after a gap, for what came before it is not here.

        Raises RoomIsHere where this server is in the room by now, and Unavailable where the lease is lost.
        """
        own_nid = await self.dictionaries.atoms.nid(self.server_name)
        async with self.database.connection() as tx:
            shared = await shared_rooms.find_one(tx, room.room_id, own_nid)
            places = await stored_places.load(tx, room.nid, [join.event_id, *join.prev_events])
        if shared is not None and shared.is_resident:
            raise RoomIsHere(room.room_id)
        known = places.pop(join.event_id, None)
        await self._nids.reserve(1)
        nid = self._nids.take() if known is None else known.nid
        async with self.database.connection() as tx:
            await room_imports.announce(tx, lease, nid)
        return Placed(
            join,
            nid,
            is_promoted=known is not None,
            flags=EventFlag.GAP,
            auth_nids=tuple(numbers.events[event_id] for event_id in join.auth_events),
            prev_nids=tuple(place.nid for place in places.values()),
            missing=frozenset(
                event_id
                for event_id in join.prev_events
                if event_id not in places or not places[event_id].has_state_before
            ),
        )

    async def _store_events(self, room: RoomRef, join: Pdu, joined: JoinedState) -> _Numbers:
        """Store the events of a state and its auth chains as outliers, those that are not here yet."""
        pdus = joined.events
        texts = {self.server_name, join.sender}
        for pdu in pdus.values():
            texts.add(pdu.sender)
            if pdu.state_key is not None:
                texts.add(pdu.state_key)
                if pdu.type == "m.room.member":
                    texts.add(server_in(pdu.state_key))
        atoms = await self.dictionaries.atoms.nids(texts)
        types = await self.dictionaries.event_types.nids({join.type, *(pdu.type for pdu in pdus.values())})
        async with self.database.connection() as tx:
            places = await stored_places.load(tx, room.nid, list(pdus))
        numbered = {event_id: place.nid for event_id, place in places.items() if not place.is_unchecked}
        await self._nids.reserve(len(pdus) - len(numbered))
        new = [pdu for event_id, pdu in pdus.items() if event_id not in numbered]
        numbered |= {pdu.event_id: self._nids.take() for pdu in new}
        rows = await asyncio.to_thread(_outliers, room.version, new, numbered)
        stored = await outliers.insert(self.database, self.dictionaries, room.nid, rows, self.clock())
        return _Numbers(numbered | stored, types, atoms)


async def _until_placed(publish: Callable[[], Awaitable[None]]) -> None:
    """Do what places a join, again where something else came in between. Raises Unavailable."""
    for _ in range(MAX_ROUNDS):
        with suppress(_Moved, EventsStored):
            await publish()
            return
    raise Unavailable("the room is too busy; try again")


def _only_at(seq: int, additions: Sequence[Placed], *, otherwise: Callable[[RoomId], Exception]) -> Decision:
    """A decision to add events to a room that is at a room_seq; at any other it raises an error."""

    def decide(head: RoomHead) -> Sequence[Placed]:
        if head.seq != seq:
            raise otherwise(head.room.room_id)
        for placed in additions:
            head.events(placed.changes or ())  # what is replaced is loaded all at once
        return additions

    return decide


def _outliers(version: RoomVersion, pdus: Iterable[Pdu], nids: Mapping[EventId, int]) -> list[Outlier]:
    return [
        Outlier(
            nids[pdu.event_id],
            pdu,
            canonical_event(version, pdu.json),
            tuple(nids[event_id] for event_id in pdu.auth_events),
        )
        for pdu in pdus
    ]


def _tell_refused(room: RoomRef, outcomes: Iterable[Pdu | RefusedPdu]) -> None:
    refused = [outcome for outcome in outcomes if isinstance(outcome, RefusedPdu)]
    if refused:
        log.info(
            "%d events that stand for room %s are refused; the first is %s: %s",
            len(refused),
            room.room_id,
            refused[0].event_id,
            refused[0].reason,
        )
