"""Two servers that share a room, told from the side of their users."""

from __future__ import annotations

import asyncio
from urllib.parse import quote
from uuid import uuid4

import pytest

from tests.clients import Client
from tests.federation.homeservers import name_of
from tests.room_versions import all_versions
from tests.servers import RunningServer
from tests.shared_rooms import join_over, state_of, until_agreed, until_heard


@all_versions
async def test_two_users_of_two_servers_talk(
    here: RunningServer, there: RunningServer, alice: Client, bob: Client, version: str
) -> None:
    room_id = await alice.create_room(name="Tea", room_version=version)
    await join_over(bob, room_id, name_of(here))
    hello = await bob.say(room_id, "hello from the other side")
    await until_heard(alice, room_id, hello)
    await until_heard(bob, room_id, await alice.say(room_id, "welcome"))

    topic = f"/_matrix/client/v3/rooms/{quote(room_id)}/state/m.room.topic"
    assert (await bob.put(topic, {"topic": "coffee"})).status == 403
    await alice.set_state(room_id, "m.room.topic", {"topic": "tea"})
    await until_agreed([alice, bob], room_id)


@pytest.mark.invariant("PROM-CONV")
async def test_prom_conv_two_servers_that_change_a_room_at_once_agree(
    here: RunningServer, there: RunningServer, alice: Client, bob: Client
) -> None:
    room_id = await alice.create_room(power_level_content_override={"state_default": 0, "events": {}})
    await join_over(bob, room_id, name_of(here))
    said = []
    for number in range(10):
        async with asyncio.TaskGroup() as tasks:
            for user in (alice, bob):
                name = {"name": f"{user.user_id} {number}"}
                tasks.create_task(user.set_state(room_id, "m.room.name", name))
                said.append(tasks.create_task(user.say(room_id, f"{number}")))
    for event_id in {task.result() for task in said}:
        await until_heard(alice, room_id, event_id)
        await until_heard(bob, room_id, event_id)
    await until_agreed([alice, bob], room_id)


async def test_what_one_does_to_a_member_of_the_other_is_known_on_both_sides(
    here: RunningServer, there: RunningServer, alice: Client, bob: Client
) -> None:
    room_id = await alice.create_room()
    room = f"/_matrix/client/v3/rooms/{quote(room_id)}"
    await join_over(bob, room_id, name_of(here))
    message = await bob.say(room_id, "something rude")
    await until_heard(alice, room_id, message)
    await alice.put(f"{room}/redact/{quote(message)}/1", {})
    await until_agreed([alice, bob], room_id)

    async def is_pruned() -> bool:
        event = await bob.get(f"{room}/event/{quote(message)}")
        return bool(event.body.get("content") == {})

    async with asyncio.timeout(20):
        while not await is_pruned():
            await asyncio.sleep(0.02)
    assert (await alice.post(f"{room}/kick", {"user_id": bob.user_id})).status == 200
    async with asyncio.timeout(20):
        while (await bob.put(f"{room}/send/m.room.message/{uuid4()}", {"body": "still here"})).status != 403:
            await asyncio.sleep(0.02)
    await join_over(bob, room_id, name_of(here))
    await until_agreed([alice, bob], room_id)
    await alice.post(f"{room}/ban", {"user_id": bob.user_id})

    async def is_out() -> bool:
        return room_id in (await bob.sync(filter='{"room":{"include_leave":true}}'))["rooms"].get("leave", {})

    async with asyncio.timeout(20):
        while not await is_out():
            await asyncio.sleep(0.02)
    refused = await bob.post(f"/_matrix/client/v3/join/{quote(room_id)}?via={name_of(here)}", {})
    assert refused.status == 403
    assert (await state_of(alice, room_id))["m.room.member", bob.user_id]


async def test_what_was_said_before_one_came_is_read_by_both(
    here: RunningServer, there: RunningServer, alice: Client, bob: Client
) -> None:
    room_id = await alice.create_room(name="Tea")
    said = []
    for number in range(150):
        if number % 10 == 0:
            await alice.set_state(room_id, "m.room.topic", {"topic": f"{number}"})
        said.append(await alice.say(room_id, f"{number}"))
    await join_over(bob, room_id, name_of(here))
    messages = f"/_matrix/client/v3/rooms/{quote(room_id)}/messages"

    async def history(user: Client) -> list[str]:
        found: list[str] = []
        query = {"dir": "b", "limit": "70"}
        while True:
            page = (await user.get(messages, query)).body
            found += [event["event_id"] for event in page["chunk"]]
            if "end" not in page:
                return found
            query["from"] = page["end"]

    of_alice = await history(alice)
    assert await history(bob) == of_alice
    assert [event_id for event_id in of_alice if event_id in said] == said[::-1]
