"""Rooms that users of several servers are in, told through what their clients see."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from tests.clients import Client

LIMIT_S: Final = 30.0
"""How long servers may take to tell each other something, on a busy machine."""


async def join_over(client: Client, room_id: str, *servers: str) -> None:
    """Join a room through other servers."""
    via = "&".join(f"via={quote(name)}" for name in servers)
    answer = await client.post(f"/_matrix/client/v3/join/{quote(room_id, safe='')}?{via}", {})
    assert answer.status == 200, answer.body


async def until_heard(client: Client, room_id: str, event_id: str, limit_s: float = LIMIT_S) -> None:
    """Wait until a client can read an event of a room that it is in."""
    path = f"/_matrix/client/v3/rooms/{quote(room_id, safe='')}/event/{quote(event_id, safe='')}"
    since = None
    try:
        async with asyncio.timeout(limit_s):
            while (await client.get(path)).status != 200:
                since = (await client.sync(since, timeout=500))["next_batch"]
    except TimeoutError:
        raise AssertionError(f"{client.user_id} has not heard of {event_id}") from None


async def state_of(client: Client, room_id: str) -> dict[tuple[str, str], str]:
    """The state of a room, as event IDs."""
    events = await client.in_room("GET", room_id, "state")
    return {(event["type"], event["state_key"]): event["event_id"] for event in events}


async def until_agreed(clients: Sequence[Client], room_id: str, limit_s: float = LIMIT_S) -> None:
    """Wait until the clients' servers have the same state of a room."""
    states: list[dict[tuple[str, str], str]] = []
    try:
        async with asyncio.timeout(limit_s):
            while not states or any(state != states[0] for state in states):
                await asyncio.sleep(0.02)
                states = [await state_of(client, room_id) for client in clients]
    except TimeoutError:
        differing = [dict(state.items() - states[0].items()) for state in states]
        raise AssertionError(f"the servers do not agree: {differing}") from None
