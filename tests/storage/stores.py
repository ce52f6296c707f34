"""A persister with all that it stands on, as each process has it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from secrets import randbits
from typing import Any
from uuid import uuid4

from homeserver.metrics import Metrics
from homeserver.protocol.event_hashes import decode_event_id
from homeserver.protocol.events import EventDraft
from homeserver.protocol.identifiers import DeviceId, EventId, RoomId, ServerName, UserId
from homeserver.services.access_tokens import Requester
from homeserver.services.clock import Clock, strictly_increasing
from homeserver.services.notifier import Notifier
from homeserver.services.out_of_band import OutOfBand
from homeserver.services.profiles import Profiles
from homeserver.services.remote_invites import RemoteInvites
from homeserver.services.room_creation import RoomCreation, RoomRequest
from homeserver.services.room_events import RoomEvents
from homeserver.services.room_membership import RoomMembership
from storage import state_deltas
from storage.database import Database, Transaction
from storage.dictionaries import Dictionaries
from storage.event_codec import decode_event
from storage.oob_memberships import OutOfBandStore
from storage.packed_state import StateEntries
from storage.persister import Persister
from storage.room_heads import RoomHeads
from storage.state_deltas import ForkState
from storage.stream import Stream, StreamEvent

SERVER = ServerName("lair.test")
NOBODY: Any = None
"""Stands for what asks other servers: here there are none."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Store:
    """One process's way to the database, and what its stream told."""

    database: Database
    dictionaries: Dictionaries
    heads: RoomHeads
    stream: Stream
    persister: Persister
    told: list[StreamEvent] = field(default_factory=list)
    clock: Clock = field(default_factory=lambda: strictly_increasing(now_ms))

    @property
    def room_creation(self) -> RoomCreation:
        profiles = Profiles(self.database, self.dictionaries)
        return RoomCreation(
            self.persister, profiles, self.remote_invites, SERVER, "12", self.clock, lambda _: True
        )

    @property
    def out_of_band(self) -> OutOfBand:
        """Without all that other servers are asked by."""
        oob_store = OutOfBandStore(self.database, self.dictionaries, SERVER)
        return OutOfBand(self.database, oob_store, self.stream, NOBODY, NOBODY, NOBODY, NOBODY, now_ms)

    @property
    def remote_invites(self) -> RemoteInvites:
        """Nobody of another server can be invited."""
        return RemoteInvites(self.persister, NOBODY, NOBODY, NOBODY, NOBODY, NOBODY, now_ms)

    @property
    def room_events(self) -> RoomEvents:
        return RoomEvents(self.persister, self.database, now_ms)

    @property
    def room_membership(self) -> RoomMembership:
        profiles = Profiles(self.database, self.dictionaries)
        notifier = Notifier(self.database, self.stream)
        return RoomMembership(
            self.persister,
            self.database,
            profiles,
            notifier,
            self.out_of_band,
            NOBODY,
            self.remote_invites,
            SERVER,
            now_ms,
        )

    async def user(self, name: str) -> Requester:
        user_id = UserId(f"@{name}-{uuid4().hex[:8]}:{SERVER}")
        user_nid = await self.dictionaries.atoms.nid(user_id)
        return Requester(user_id, DeviceId("DEVICE"), user_nid, user_nid, is_admin=False, is_guest=False)

    async def room(self, creator: Requester, **request: object) -> RoomId:
        return await self.room_creation.create(creator, RoomRequest(preset="public_chat", **request))  # type: ignore[arg-type]

    async def send(self, sender: Requester, room_id: RoomId, body: str, txn_id: str | None = None) -> EventId:
        draft = EventDraft("m.room.message", {"msgtype": "m.text", "body": body})
        return await self.room_events.send(sender, room_id, draft, txn_id or uuid4().hex)

    async def timeline(self, room_id: RoomId) -> list[EventId]:
        """The IDs of a room's live events in order, each having the one before it as its parent."""
        async with self.database.connection() as tx:
            rows = await tx.fetch(
                """
                SELECT room_seq, nid FROM events WHERE room_nid = (SELECT nid FROM rooms WHERE room_id = $1)
                ORDER BY room_seq
                """,
                room_id,
            )
            assert [row["room_seq"] for row in rows] == list(range(1, len(rows) + 1))
            events = await read_events(tx, [row["nid"] for row in rows])
        for before, after in pairwise(events):
            assert after.prev_events == (before.event_id,)
        return [event.event_id for event in events]


async def store_delta(
    tx: Transaction, room_nid: int, base_ver: int, differences: StateEntries, over: int | None = None
) -> int:
    """Store the state "trunk(base_ver), then the delta `over`, then `differences`"; returns its number."""
    below = None if over is None else (await state_deltas.load(tx, [over]))[over]
    state = ForkState(base_ver, differences, over, below)
    row = state_deltas.row_of(state, randbits(60), room_nid)
    assert row is not None
    return await state_deltas.store(tx, row)


@dataclass(frozen=True)
class ParentedEvent:
    """An event's ID and its parents."""

    event_id: EventId
    prev_events: tuple[EventId, ...]


async def read_events(tx: Transaction, nids: Sequence[int]) -> list[ParentedEvent]:
    rows = await tx.fetch("SELECT nid, event_id, flags, json FROM events WHERE nid = ANY($1::bigint[])", nids)
    events = {row["nid"]: (row["event_id"], decode_event(row["flags"], row["json"])) for row in rows}
    return [
        ParentedEvent(decode_event_id(events[nid][0]), tuple(events[nid][1]["prev_events"])) for nid in nids
    ]


@asynccontextmanager
async def open_store(database_url: str) -> AsyncIterator[Store]:
    """A store on a database of its own connections, which writes as long as the context lasts."""
    database = await Database.open(database_url, pool_size=4)
    try:
        dictionaries = Dictionaries(database)
        heads = RoomHeads(database, dictionaries)
        stream = Stream(database)
        await stream.start()
        persister = Persister(database, dictionaries, heads, stream, Metrics(), now_ms)
        store = Store(database, dictionaries, heads, stream, persister)
        stream.listen(store.told.extend)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(persister.run())
            try:
                yield store
            finally:
                persister.close()
    finally:
        await database.close()
