"""What users see of a room, and do in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import aiohttp

from tests.clients import Client, Response
from tests.shared_rooms import LIMIT_S, until_heard


async def until(is_so: Callable[[], Awaitable[bool]], limit_s: float = LIMIT_S) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(limit_s):
        while not await is_so():
            await asyncio.sleep(0.05)


async def attempt(user: Client, method: str, room_id: str, rest: str, body: Any = None) -> Response:
    """A request about a room that may be refused."""
    return await user.send(method, f"/_matrix/client/v3/rooms/{quote(room_id, safe='')}/{rest}", body)


async def try_join(user: Client, room_id: str, *servers: str) -> Response:
    """An attempt to join through other servers."""
    via = "&".join(f"via={quote(name)}" for name in servers)
    return await user.post(f"/_matrix/client/v3/join/{quote(room_id, safe='')}?{via}", {})


async def say_or_break_off(user: Client, room_id: str, text: str) -> str | None:
    """Send a message and return its ID; None where the server broke off before it had answered."""
    try:
        return await user.say(room_id, text)
    except aiohttp.ClientError:
        return None


async def try_say(user: Client, room_id: str) -> Response:
    """An attempt to send a message."""
    content = {"msgtype": "m.text", "body": "may I?"}
    return await attempt(user, "PUT", room_id, f"send/m.room.message/{uuid4().hex}", content)


async def change_member(user: Client, room_id: str, action: str, target: Client) -> None:
    """Invite, kick, ban or unban."""
    await user.in_room("POST", room_id, action, {"user_id": target.user_id})


async def redact(user: Client, room_id: str, event_id: str) -> str:
    """Redact an event and return the redaction's ID."""
    answer = await user.in_room("PUT", room_id, f"redact/{quote(event_id, safe='')}/{uuid4().hex}", {})
    redaction: str = answer["event_id"]
    return redaction


async def content_of(user: Client, room_id: str, event_type: str, state_key: str = "") -> dict[str, Any]:
    """The content of a piece of the state; empty where there is none."""
    path = f"state/{event_type}/{quote(state_key, safe='')}"
    answer = await attempt(user, "GET", room_id, path)
    assert answer.status in (200, 404), answer.body
    content: dict[str, Any] = answer.body if answer.status == 200 else {}
    return content


async def membership(user: Client, room_id: str, of: Client) -> str:
    """What someone is in the room as a member of it sees it; "" where the room does not say."""
    name: str = (await content_of(user, room_id, "m.room.member", of.user_id)).get("membership", "")
    return name


async def until_member(users: list[Client], room_id: str, of: Client, expected: str) -> None:
    """Wait until all users see that someone is invited, joined, gone or banned."""
    for user in users:

        async def is_so(user: Client = user) -> bool:
            return await membership(user, room_id, of) == expected

        await until(is_so)


async def until_stands(user: Client, room_id: str, section: str) -> Any:
    """Wait until a room is in a section of the user's sync, invite, join or leave; returns what is there."""
    since, sections = None, {}
    wanted = {"room": {"include_leave": True}}
    async with asyncio.timeout(LIMIT_S):
        while room_id not in sections:
            answer = await user.sync(since, timeout=500, filter=wanted)
            since, sections = answer["next_batch"], answer.get("rooms", {}).get(section, {})
    return sections[room_id]


async def until_all_heard(users: Sequence[Client], room_id: str, event_ids: Iterable[str]) -> None:
    """Wait until all users can read all of some events."""
    wanted = list(event_ids)

    async def until_heard_by(user: Client) -> None:
        for event_id in wanted:
            await until_heard(user, room_id, event_id)

    async with asyncio.TaskGroup() as tasks:
        for user in users:
            tasks.create_task(until_heard_by(user))


async def history_of(user: Client, room_id: str) -> list[dict[str, Any]]:
    """The events of a room, oldest first, as far back as the user may read."""
    events: list[dict[str, Any]] = []
    token = ""
    while True:
        answer = await user.in_room("GET", room_id, f"messages?dir=b&limit=100{token}")
        events += answer["chunk"]
        if "end" not in answer:
            break
        token = f"&from={quote(answer['end'])}"
    return events[::-1]


async def messages_of(user: Client, room_id: str) -> list[dict[str, Any]]:
    """The messages of a room, oldest first, as far back as the user may read."""
    return [event for event in await history_of(user, room_id) if event["type"] == "m.room.message"]


async def texts_of(user: Client, room_id: str) -> list[str]:
    """What was said in a room, oldest first."""
    return [event["content"]["body"] for event in await messages_of(user, room_id)]
