"""The store: services, persister and a PostgreSQL of our own, without HTTP."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

from homeserver.services.access_tokens import Requester
from storage.database import Database
from storage.embedded.supervisor import EmbeddedPostgres
from storage.migrate import migrate
from tests.benchmarks.measuring import Meter, Row, Scale
from tests.storage.stores import Store, open_store

CONNECTIONS = 20
USERS = 32


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """Messages of so many writers at once into one room, each durable before its writer goes on."""
    with tempfile.TemporaryDirectory(prefix="lair-bench-") as folder:
        postgres = EmbeddedPostgres(Path(folder) / "data", "nobody", CONNECTIONS)
        await postgres.start()
        try:
            assert postgres.postmaster_pid is not None
            database = await Database.open(postgres.url, pool_size=1)
            await migrate(database)
            await database.close()
            async with open_store(postgres.url) as store:
                async for row in _rows(scale, store, postgres.postmaster_pid):
                    yield row
        finally:
            await postgres.stop()


async def _rows(scale: Scale, store: Store, postmaster: int) -> AsyncIterator[Row]:
    users = [await store.user(f"user{number}") for number in range(USERS)]
    room_id = await store.room(users[0])
    for user in users[1:]:
        await store.room_membership.join(user, room_id, {})
    numbers = count()
    loop = asyncio.get_running_loop()

    async def write(user: Requester, until: float) -> int:
        sent = 0
        while loop.time() < until:
            await store.send(user, room_id, f"message {next(numbers)}", f"{next(numbers)}")
            sent += 1
        return sent

    for writers in scale.writers:
        meter = Meter(None, postmaster)
        until = loop.time() + scale.seconds
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(write(users[n % USERS], until)) for n in range(writers)]
        yield meter.row(
            f"persist, one room, {_times(writers, 'writer')}", sum(task.result() for task in running)
        )


def _times(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
