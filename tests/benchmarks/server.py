"""A real server process over HTTP: what its clients do most."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from tests.benchmarks.http_client import Connection
from tests.benchmarks.measuring import Meter, Row, Scale, resident_kib
from tests.server_process import ServerProcess

T = TypeVar("T")
R = TypeVar("R")

V3: Final = "/_matrix/client/v3"
WIDTH: Final = 8
"""How many requests of the preparations run at once."""
DELIVERING_SENDERS: Final = 4
JOINING: Final = 4
MEASURED_JOINS: Final = 200
LATER_SYNCS: Final = 20
SETTLING: Final = 50
"""So many requests after the long ones, all of those wait."""
VERSIONS: Final = "/_matrix/client/versions"


@dataclass
class Crowd:
    """The users of one server and what they do."""

    server: ServerProcess
    numbers: count[int] = field(default_factory=count)

    def meter(self) -> Meter:
        return Meter(self.server.pid, self.server.postmaster_pid)

    async def each(
        self, items: Sequence[T], act: Callable[[Connection, T], Awaitable[R]], width: int = WIDTH
    ) -> list[R]:
        """Do something for each item, over so many connections at once."""
        waiting = iter(enumerate(items))
        results: dict[int, R] = {}

        async def lane() -> None:
            connection = await Connection.open(self.server.port)
            for number, item in waiting:
                results[number] = await act(connection, item)
            connection.close()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(width, len(items))):
                tasks.create_task(lane())
        return [results[number] for number in range(len(items))]

    async def again(
        self, items: Sequence[T], act: Callable[[Connection, T], Awaitable[object]], seconds: float
    ) -> int:
        """Do something with each item again and again, each over its own connection; returns how often."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        done = 0

        async def lane(connection: Connection, item: T) -> None:
            nonlocal done
            while loop.time() < until:
                await act(connection, item)
                done += 1

        await self.each(items, lane, len(items))
        return done

    async def users(self, number: int) -> list[str]:
        """Make accounts; a user is its access token."""
        return await self.each(range(number), self._register)

    async def _register(self, connection: Connection, _: int) -> str:
        body = {
            "username": f"user{next(self.numbers)}",
            "password": "benchmark",
            "auth": {"type": "m.login.dummy"},
        }
        token: str = (await connection.json("POST", f"{V3}/register", body=body))["access_token"]
        return token

    async def room(self, connection: Connection, creator: str) -> str:
        """Make a public room; returns its path."""
        answer = await connection.json("POST", f"{V3}/createRoom", creator, {"preset": "public_chat"})
        return f"{V3}/rooms/{quote(answer['room_id'])}"

    async def shared_room(self, members: Sequence[str], width: int = WIDTH) -> str:
        """A room of all these users."""
        [room] = await self.each(members[:1], self.room)
        await self.join(room, members[1:], width)
        return room

    async def join(self, room: str, users: Sequence[str], width: int = WIDTH) -> None:
        await self.each(
            users, lambda connection, user: connection.request("POST", f"{room}/join", user, b"{}"), width
        )

    async def say(
        self, connection: Connection, room: str, sender: str, text: str = "Hello, everybody"
    ) -> None:
        body = b'{"msgtype":"m.text","body":"%s"}' % text.encode()
        await connection.request("PUT", f"{room}/send/m.room.message/{next(self.numbers)}", sender, body)


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """All kinds of load on one server, which is started anew for the figures of its memory."""
    with tempfile.TemporaryDirectory(prefix="lair-bench-") as folder:
        server = ServerProcess(Path(folder))
        async with server:
            crowd = Crowd(server)
            for part in (_sending, _delivery, _syncing, _joining):
                async for row in part(scale, crowd):
                    yield row
            idlers = await crowd.users(scale.waiting)
            await server.stop()
            await server.start()
            async for row in _memory(crowd, idlers):
                yield row


async def _sending(scale: Scale, crowd: Crowd) -> AsyncIterator[Row]:
    users = await crowd.users(max(scale.senders))
    room = await crowd.shared_room(users)
    for senders in scale.senders:
        meter = crowd.meter()
        sent = await crowd.again(
            users[:senders], lambda connection, user: crowd.say(connection, room, user), scale.seconds
        )
        yield meter.row(f"send, one room, x{senders}", sent)


async def _delivery(scale: Scale, crowd: Crowd) -> AsyncIterator[Row]:
    """An operation is one event that one member receives."""
    users = await crowd.users(scale.receivers)
    room = await crowd.shared_room(users)
    since = await crowd.each(users, _next_batch)
    delivered = 0

    async def receive(connection: Connection, reader: tuple[str, str]) -> None:
        nonlocal delivered
        user, token = reader
        while True:
            body = await connection.request("GET", f"{V3}/sync?timeout=30000&since={token}", user)
            delivered += body.count(b'"m.room.message"')
            if b"The last one" in body:
                return
            token = _token_in(body)

    async def send() -> int:
        sent = await crowd.again(
            users[:DELIVERING_SENDERS],
            lambda connection, user: crowd.say(connection, room, user),
            scale.seconds,
        )
        await crowd.each(
            users[:1], lambda connection, user: crowd.say(connection, room, user, "The last one")
        )
        return sent + 1

    meter = crowd.meter()
    readers = list(zip(users, since, strict=True))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(crowd.each(readers, receive, len(readers)))
        sending = tasks.create_task(send())
    name = f"delivery to {scale.receivers} waiting syncs"
    yield meter.row(name, delivered, f"{sending.result():,} sends by {DELIVERING_SENDERS} senders included")


async def _syncing(scale: Scale, crowd: Crowd) -> AsyncIterator[Row]:
    users = await crowd.users(scale.room_members)
    rooms = await crowd.each([users[0]] * scale.rooms, crowd.room)
    await crowd.each(users[1:], lambda connection, user: _join_all(connection, rooms, user))
    speakers = [(room, users[n % len(users)]) for room in rooms for n in range(scale.room_messages)]
    await crowd.each(speakers, lambda connection, speaker: crowd.say(connection, *speaker))
    size = f"{scale.rooms} rooms"

    [token] = await crowd.each(users[:1], _next_batch)
    meter = crowd.meter()
    synced = await crowd.again(
        [f"{V3}/sync?timeout=0&since={token}"] * WIDTH,
        lambda connection, path: connection.request("GET", path, users[0]),
        scale.seconds,
    )
    yield meter.row(f"sync with nothing new, {size}", synced)

    meter.restart()
    bodies = await crowd.each(
        users[1:], lambda connection, user: connection.request("GET", f"{V3}/sync", user), 1
    )
    note = f"{scale.room_members} members each; {len(bodies[0]) // 1000} kB"
    yield meter.row(f"initial sync, {size}, each user's first", len(bodies), note)
    meter.restart()
    again = [users[1]] * LATER_SYNCS
    await crowd.each(again, lambda connection, user: connection.request("GET", f"{V3}/sync", user), 1)
    yield meter.row(f"initial sync, {size}, later", len(again))


async def _joining(scale: Scale, crowd: Crowd) -> AsyncIterator[Row]:
    measured = min(MEASURED_JOINS, scale.large_room // 2)
    users = await crowd.users(scale.large_room + measured // 2)
    room = await crowd.shared_room(users[:-measured])
    meter = crowd.meter()
    await crowd.join(room, users[-measured:], JOINING)
    yield meter.row(f"join into a room of {scale.large_room:,}", measured)


async def _memory(crowd: Crowd, users: Sequence[str]) -> AsyncIterator[Row]:
    """A server just started, and one that users have synced with and wait for."""
    idle = resident_kib(crowd.server.pid)
    yield Row("memory, idle", note=f"{idle / 1024:.1f} MiB")
    tokens = await crowd.each(users, _next_batch)
    synced = resident_kib(crowd.server.pid)
    connections = [await Connection.open(crowd.server.port) for _ in users]
    async with asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(connection.request("GET", f"{V3}/sync?timeout=60000&since={token}", user))
            for connection, user, token in zip(connections, users, tokens, strict=True)
        ]
        await crowd.each([""] * SETTLING, lambda connection, _: connection.request("GET", VERSIONS), 1)
        held = resident_kib(crowd.server.pid)
        for task in waiting:
            task.cancel()
    for connection in connections:
        connection.close()
    note = f"{(held - synced) / len(users):.1f} KiB; {(held - idle) / len(users):.1f} KiB with its user"
    yield Row("memory, each waiting sync", note=note)


async def _next_batch(connection: Connection, user: str) -> str:
    """The token of a first sync."""
    return _token_in(await connection.request("GET", f"{V3}/sync?timeout=0", user))


def _token_in(body: bytes) -> str:
    return body.partition(b'"next_batch":"')[2].partition(b'"')[0].decode()


async def _join_all(connection: Connection, rooms: Sequence[str], user: str) -> None:
    for room in rooms:
        await connection.request("POST", f"{room}/join", user, b"{}")
