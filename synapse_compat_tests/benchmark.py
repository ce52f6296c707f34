"""A large room of another server's, as a Lair and a Synapse come into it: real HTTP, keys and signatures.

The other server is played, and costs nothing that is counted here. Synapse is the one of the tests, on
SQLite: what its database does is part of its own process.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import aiohttp
from canonicaljson import encode_canonical_json
from yarl import URL

from federation.outbound.signed_client import uri_of
from homeserver.protocol.events import Pdu
from homeserver.services.clock import system_clock
from synapse_compat_tests.environment import synapse_python
from synapse_compat_tests.synapse_process import synapse_process
from tests.benchmarks.measuring import Meter, Row, Scale
from tests.clients import Client
from tests.federation.homeservers import homeserver_process
from tests.federation.peers import Authority, Peer, running_peer
from tests.federation.played_rooms import V1, PlayedRoom, user_of
from tests.servers import MovableClock
from tests.shared_rooms import join_over

FIRST_FORKS: Final = 2
"""So many come before those that are measured."""
SPEAKERS: Final = 3
"""Of the room's members."""
ARRIVAL_LIMIT_S: Final = 60.0


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """Joining a large room, and forks in it, of both servers one after the other."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lair-bench-")))
        authority, clock = Authority.new(folder), MovableClock()
        clock.advance(system_clock() - clock())
        synapse = synapse_process(await asyncio.to_thread(synapse_python), authority, folder / "synapse")
        peer = await stack.enter_async_context(running_peer(authority, clock))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        context = ssl.create_default_context()
        authority.ca.configure_trust(context)
        connector = aiohttp.TCPConnector(ssl=context)
        trusting = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        lair = await stack.enter_async_context(homeserver_process(authority, folder / "lair"))
        await stack.enter_async_context(synapse)
        for name, process, postmaster in (
            ("Lair Chat", lair, lair.postmaster_pid),
            ("Synapse on SQLite", synapse, None),
        ):
            client = await Client(http, process.url).register("alice")
            room = large_room(peer, scale.shared_members)
            outside = Outside(room, peer, process.name, trusting)
            meter = Meter(process.pid, postmaster)
            await join_over(client, room.room_id, peer.name)
            yield meter.row(f"join {scale.shared_members:,} over HTTP: {name}", 1)
            since = (await client.sync())["next_batch"]
            for _ in range(FIRST_FORKS):
                since = await until_shown(client, since, await outside.fork())
            meter.restart()
            for _ in range(scale.shared_forks):
                since = await until_shown(client, since, await outside.fork())
            yield meter.row(f"fork among {scale.shared_members:,}: {name}", scale.shared_forks)


def large_room(peer: Peer, members: int) -> PlayedRoom:
    """A public room of so many users of a peer. All may change its state."""
    first, *others = (user_of(peer, f"user{number}") for number in range(members))
    room = PlayedRoom.new([peer], members=[first], power_levels={"state_default": 0})
    state = room.state
    for user_id in others:
        content = {"membership": "join", "displayname": f"User {user_id}"}
        join = room.event(user_id, "m.room.member", content, user_id, apart=True)
        room.events[join.event_id], room.heads = join, [join.event_id]
        room.before[join.event_id] = state  # of all of them it is that of the end
        state[join.key] = join.event_id
    return room


@dataclass
class Outside:
    """The other server, which sends what happens in its room to one that has joined it."""

    room: PlayedRoom
    peer: Peer
    destination: str
    http: aiohttp.ClientSession
    """Trusts the certificate of the destination."""
    numbers: Iterator[int] = field(default_factory=count)

    async def fork(self) -> Pdu:
        """Two users set the topic at once, and a third one speaks who knows both; returns the message."""
        heads = list(self.room.heads)
        topics = [
            self.room.event(self._user(), "m.room.topic", {"topic": f"tea {number}"}, "", prev=heads)
            for number in range(2)
        ]
        message = self.room.event(self._user(), "m.room.message", {"msgtype": "m.text", "body": "both"})
        for event in (*topics, message):
            await self._send(event)
        return message

    def _user(self) -> str:
        self.peer.clock.advance(1)
        return user_of(self.peer, f"user{next(self.numbers) % SPEAKERS}")

    async def _send(self, event: Pdu) -> None:
        content = {
            "origin": self.peer.name,
            "origin_server_ts": self.peer.clock(),
            "pdus": [event.json],
        }
        uri, body = uri_of(f"{V1}/send", event.event_id), encode_canonical_json(content)
        headers = {"Authorization": self.peer.sign("PUT", uri, self.destination, body)}
        url = URL(f"https://{self.destination}{uri}", encoded=True)
        async with self.http.put(url, data=body, headers=headers) as answer:
            assert await answer.json() == {"pdus": {event.event_id: {}}}


async def until_shown(client: Client, since: str, event: Pdu) -> str:
    """Sync until a message is shown; returns the token for what follows."""
    async with asyncio.timeout(ARRIVAL_LIMIT_S):
        while True:
            answer = await client.sync(since, timeout=1000)
            since = answer["next_batch"]
            room = answer.get("rooms", {}).get("join", {}).get(event.room_id, {"timeline": {"events": []}})
            if event.event_id in [shown["event_id"] for shown in room["timeline"]["events"]]:
                return since
