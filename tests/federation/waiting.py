"""Waiting for what our server does by itself."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.clients import Client
from tests.federation.joined_rooms import bodies
from tests.federation.played_rooms import PlayedRoom
from tests.servers import RunningServer


async def until(condition: Any, limit_s: float = 20) -> Any:
    """Ask again and again until the answer is not false."""
    async with asyncio.timeout(limit_s):
        while not (found := await condition()):
            await asyncio.sleep(0.02)
    return found


async def until_said(client: Client, room: PlayedRoom, *texts: str) -> None:
    """Wait until a client can read some texts in a room."""

    async def has_come() -> bool:
        return set(texts) <= set(await bodies(client, room))

    await until(has_come)


async def given_up(server: RunningServer, room: PlayedRoom) -> bool:
    """Whether no event of a room waits any more."""
    async with server.services.room_history.database.connection() as tx:
        query = "SELECT count(*) FROM waiting_pdus JOIN rooms ON nid = room_nid WHERE room_id = $1"
        return bool(await tx.fetchval(query, room.room_id) == 0)
