"""Rooms of peers that users of ours are in, told through what their clients do and see."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

from homeserver.protocol.events import Pdu
from tests.client_api.rooms import room_path
from tests.clients import Client, Response
from tests.federation.played_rooms import PlayedRoom


async def join_by(client: Client, room_id: str, *via: str, **content: Any) -> Response:
    query = "&".join(f"via={quote(name)}" for name in via)
    return await client.post(f"/_matrix/client/v3/join/{quote(room_id)}?{query}", content)


async def joined(client: Client, room: PlayedRoom, **content: Any) -> Pdu:
    """A user joins a played room; the join as the peers know it."""
    answer = await join_by(client, room.room_id, *(peer.name for peer in room.peers), **content)
    assert answer.status == 200, answer.body
    return room.events[room.state["m.room.member", client.user_id]]


async def members(client: Client, room: PlayedRoom) -> set[str]:
    answer = await client.get(room_path(room.room_id, "joined_members"))
    return set(answer.body["joined"]) if answer.status == 200 else set()


async def state_of(client: Client, room: PlayedRoom, event_type: str, state_key: str = "") -> Any:
    answer = await client.get(room_path(room.room_id, "state", event_type, state_key))
    return answer.body if answer.status == 200 else None


async def bodies(client: Client, room: PlayedRoom) -> list[Any]:
    """The newest texts in a room, the oldest first."""
    answer = await client.get(room_path(room.room_id, "messages"), {"dir": "b", "limit": "50"})
    return [
        event["content"].get("body") for event in reversed(answer.body["chunk"]) if "body" in event["content"]
    ]


async def comes(client: Client, room: PlayedRoom, text: str) -> bool:
    """Whether a text comes into a room before long."""
    for _ in range(200):
        if text in await bodies(client, room):
            return True
        await asyncio.sleep(0.02)
    return False


async def is_shown(client: Client, room: PlayedRoom, event: Pdu) -> bool:
    """Whether a client is shown an event of a room."""
    return (await client.get(room_path(room.room_id, "event", event.event_id))).status == 200
