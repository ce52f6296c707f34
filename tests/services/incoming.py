"""A store that takes events from outside: no gate, and nobody to ask for what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import RoomId
from homeserver.services.access_tokens import Requester
from homeserver.services.event_intake import EventIntake
from homeserver.services.fork_placement import ForkPlacement
from homeserver.services.fork_states import ForkStates
from homeserver.services.forward_extremities import ForwardExtremities
from homeserver.services.gap_filling import GapFilling
from homeserver.services.incoming_events import IncomingEvents
from homeserver.services.server_access import ServerAccess
from storage import room_timeline
from storage.auth_graphs import AuthGraphs
from storage.database import Database
from storage.room_heads import RoomHeads, RoomRef
from storage.state_deltas import ForkState
from tests.storage.stores import SERVER, Store, now_ms, open_store


class NobodyElse:
    """No server that could be asked for anything."""

    async def before(self, *_: object) -> list[Pdu]:
        return []

    async def auth_events(self, *_: object) -> bool:
        return False

    async def state_before(self, *_: object) -> ForkState | None:
        return None


@dataclass
class IncomingStore:
    """A store with what takes events from outside."""

    store: Store
    incoming: IncomingEvents
    alice: Requester
    """A user of this server."""

    @property
    def database(self) -> Database:
        return self.store.database

    @property
    def heads(self) -> RoomHeads:
        return self.store.heads

    async def room(self, creator: Requester, **request: Any) -> RoomId:
        return await self.store.room(creator, **request)

    async def events_of(self, ref: RoomRef) -> list[Pdu]:
        """The events of a room that has not forked, in their order."""
        async with self.database.connection() as tx:
            rows = await room_timeline.read_forwards(tx, ref.nid, (0, 0), (2**62, 0), 1000)
        return [row.pdu(ref) for row in rows]


@asynccontextmanager
async def open_incoming(database_url: str) -> AsyncIterator[IncomingStore]:
    """A store that takes events for as long as the context lasts."""
    async with open_store(database_url) as store:
        forks = ForkStates(store.database, store.dictionaries, AuthGraphs(store.database))
        extremities = ForwardExtremities(store.persister, store.database, SERVER, now_ms)
        intake = EventIntake(
            store.database,
            store.persister,
            ForkPlacement(store.database, store.dictionaries, forks, SERVER),
            extremities,
        )
        nobody: Any = NobodyElse()
        gaps = GapFilling(store.database, store.persister, intake, nobody, SERVER)
        incoming = IncomingEvents(
            store.database,
            store.dictionaries,
            store.persister,
            intake,
            gaps,
            ServerAccess(store.database),
            SERVER,
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(incoming.run())
            try:
                yield IncomingStore(store, incoming, await store.user("alice"))
            finally:
                running.cancel()
