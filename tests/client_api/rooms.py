"""Rooms, as tests of the client API make and read them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote
from uuid import uuid4

from tests.clients import Client

CREATE_ROOM = "/_matrix/client/v3/createRoom"


def room_path(room_id: str, *segments: str) -> str:
    """The path of something in a room."""
    return "/".join(
        ["/_matrix/client/v3/rooms", *(quote(segment, safe="") for segment in (room_id, *segments))]
    )


async def new_room(creator: Client, **wanted: Any) -> str:
    """A room that everybody may join, unless something else is wanted.

    Its create event is like no other: in room version 12 that makes the room's ID, and clocks stand still.
    """
    unique = {"creation_content": {"org.example.number": uuid4().hex, **wanted.pop("creation_content", {})}}
    answer = await creator.post(CREATE_ROOM, {"preset": "public_chat", **unique, **wanted})
    assert answer.status == 200, answer.body
    room_id: str = answer.body["room_id"]
    return room_id


async def join(client: Client, room_id: str) -> None:
    answer = await client.post(room_path(room_id, "join"), {})
    assert answer.status == 200, answer.body


async def set_state(
    client: Client, room_id: str, event_type: str, content: dict[str, Any], state_key: str = ""
) -> str:
    answer = await client.put(room_path(room_id, "state", event_type, state_key), content)
    assert answer.status == 200, answer.body
    event_id: str = answer.body["event_id"]
    return event_id


async def state_event(client: Client, room_id: str, event_type: str, state_key: str = "") -> dict[str, Any]:
    """The newest event of a piece of state that an initial sync shows."""
    answer = await client.get("/_matrix/client/v3/sync", {"timeout": "0"})
    assert answer.status == 200, answer.body
    room = answer.body["rooms"]["join"][room_id]
    events: list[dict[str, Any]] = [
        event
        for event in (*room["state"]["events"], *room["timeline"]["events"])
        if (event["type"], event.get("state_key")) == (event_type, state_key)
    ]
    return events[-1]
