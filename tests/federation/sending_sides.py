"""A server of which only the sending to other servers runs, with rooms in which users of peers are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from secrets import randbits
from typing import Any, Final

from federation.outbound.server_discovery import ServerDiscovery
from federation.outbound.signed_client import SignedClient
from federation.outbound.srv_records import SrvRecords
from homeserver.http_client import HttpClient
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId
from homeserver.protocol.signing import SigningKey
from homeserver.server_policy import ServerPolicy
from homeserver.services.access_tokens import Requester
from homeserver.services.destinations import Destinations
from homeserver.services.event_building import build_event
from homeserver.services.federation_sending import FederationSending
from homeserver.services.outgoing_events import OutgoingEvents
from homeserver.services.own_keys import OwnKeys
from homeserver.services.signing_key_file import new_signing_key
from homeserver.workers.federation_sender import send_to_servers
from storage.database import Database
from storage.migrate import migrate
from storage.placement import Placed
from storage.room_heads import RoomHead
from tests.databases import new_database
from tests.federation.peers import LOOPBACK, SEND, Asked, Authority, Peer, Transaction, error_answer, resolver
from tests.servers import MovableClock
from tests.storage.stores import SERVER, Store, now_ms, open_store

TIME_LIMIT_S: Final = 20.0
LONG_MS: Final = 30 * 24 * 3600 * 1000


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(TIME_LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class SendingSide:
    """Our server, on a database of its own. It sends while a block of `sending` lasts."""

    database: Database
    store: Store
    http: HttpClient
    clock: MovableClock
    key: SigningKey
    denied: frozenset[str] = frozenset()
    destinations: Destinations = field(init=False)
    """Of the newest run."""

    @asynccontextmanager
    async def sending(
        self, outgoing: Callable[[OwnKeys], OutgoingEvents] = OutgoingEvents
    ) -> AsyncIterator[FederationSending]:
        """One run of the federation sender; it ends as when the server stops."""

        def heard(server_name: ServerName) -> None:
            sending.heard(server_name)

        destinations = self.destinations = Destinations(self.database, self.clock, heard)
        await destinations.load()
        policy = ServerPolicy(SERVER, None, self.denied)
        discovery = ServerDiscovery(self.http, SrvRecords(self.clock, None), self.clock)
        client = SignedClient(self.http, discovery, SERVER, self.key, policy, destinations, self.clock)
        sending = FederationSending(
            self.database,
            outgoing(OwnKeys(SERVER, self.key, {})),
            client,
            destinations,
            policy,
            self.clock,
            position=self.store.stream.position,
        )
        self.store.stream.listen(sending.listen)
        async with asyncio.TaskGroup() as tasks:
            worker = tasks.create_task(send_to_servers(sending))
            yield sending
            worker.cancel()
        self.store.stream._listeners.remove(sending.listen)

    async def room(self, *peers: Peer) -> tuple[Requester, RoomId]:
        """A room of one of our users, in which a user of each peer is."""
        alice = await self.store.user("alice")
        room_id = await self.store.room(alice)
        for peer in peers:
            await self.join(room_id, peer)
        return alice, room_id

    async def join(self, room_id: RoomId, peer: Peer, name: str = "bob") -> UserId:
        """A user of a peer joins."""
        user_id = UserId(f"@{name}:{peer.name}")
        await self.arrives(room_id, user_id, "m.room.member", {"membership": "join"}, user_id)
        return user_id

    async def leave(self, room_id: RoomId, user_id: UserId) -> None:
        """A user of a peer leaves."""
        await self.arrives(room_id, user_id, "m.room.member", {"membership": "leave"}, user_id)

    async def arrives(
        self,
        room_id: RoomId,
        sender: UserId,
        event_type: str,
        content: dict[str, Any],
        state_key: str | None = None,
    ) -> None:
        """An event of another server's user comes in."""

        def decide(head: RoomHead) -> list[Placed]:
            pdu = build_event(head, EventDraft(event_type, content, state_key), sender, now_ms())
            return [Placed(pdu, randbits(60), 0, ())]

        await self.store.persister.append(room_id, decide)

    async def membership(
        self, sender: Requester, room_id: RoomId, user_id: UserId, membership: str
    ) -> EventId:
        """Our user changes the membership of another one."""

        def decide(head: RoomHead) -> list[Pdu]:
            draft = EventDraft("m.room.member", {"membership": membership}, user_id)
            return [build_event(head, draft, sender.user_id, now_ms())]

        [event_id] = await self.store.persister.append(room_id, decide)
        return event_id

    async def say(self, sender: Requester, room_id: RoomId, *texts: str) -> list[EventId]:
        """Send messages, one after the other."""
        return [await self.store.send(sender, room_id, text) for text in texts]


@asynccontextmanager
async def sending_side(
    postgres_url: str, authority: Authority, clock: MovableClock
) -> AsyncIterator[SendingSide]:
    """Our server, on an empty database; its clock is so far ahead that no room is one to greet servers of."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(new_database(postgres_url))
        database = await Database.open(url, pool_size=3)
        stack.push_async_callback(database.close)
        await migrate(database)
        store = await stack.enter_async_context(open_store(url))
        http = await stack.enter_async_context(
            HttpClient(allowed_ranges=LOOPBACK, ca_files=[authority.file], resolve=resolver({}))
        )
        clock.now = now_ms() + LONG_MS
        yield SendingSide(database, store, http, clock, new_signing_key())


def bodies(transactions: list[Transaction]) -> list[str]:
    """What was said in transactions, in order; for an event of another type its type, or a membership."""
    said = []
    for transaction in transactions:
        for pdu in transaction.content["pdus"]:
            content = pdu["content"]
            said.append(content.get("body") or content.get("membership") or pdu["type"])
    return said


@dataclass
class Gate:
    """Decides whether a peer takes transactions."""

    peer: Peer
    status: int = 200
    hangs: bool = False
    tried: int = 0

    @classmethod
    def of(cls, peer: Peer) -> Gate:
        """A gate before a peer, open at first."""
        gate = cls(peer)
        peer.route("PUT", SEND, gate._answer)
        return gate

    def _answer(self, asked: Asked) -> Any:
        self.tried += 1
        if self.hangs:
            return self._wait(asked)
        return None if self.status == 200 else error_answer(self.status, "M_UNKNOWN")

    async def _wait(self, asked: Asked) -> Any:
        while self.hangs:
            await asyncio.sleep(0.005)
        return self.peer._take(asked)
