"""Servers that are killed while they share a room: what was said reaches everybody all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.clients import Client
from tests.federation.homeservers import homeserver_process
from tests.federation.peers import Authority
from tests.servers import unique_name
from tests.shared_rooms import join_over, until_agreed, until_heard

MESSAGES = 30


@pytest.mark.invariant("PROM-FED")
async def test_prom_fed_a_killed_server_has_everything_when_it_is_back(tmp_path: Path) -> None:
    authority = Authority.new(tmp_path)
    async with (
        homeserver_process(authority, tmp_path / "one") as one,
        homeserver_process(authority, tmp_path / "two") as two,
        aiohttp.ClientSession() as http,
    ):
        alice = await Client(http, one.url).register(unique_name("alice"))
        bob = await Client(http, two.url).register(unique_name("bob"))
        room_id = await alice.create_room(power_level_content_override={"state_default": 0, "events": {}})
        await join_over(bob, room_id, one.name)
        await until_heard(alice, room_id, await bob.say(room_id, "before"))

        await two.kill()
        missed = [await alice.say(room_id, f"missed {number}") for number in range(MESSAGES)]
        await alice.set_state(room_id, "m.room.topic", {"topic": "what two missed"})
        await two.start()
        said = await bob.say(room_id, "back, and not knowing yet")
        for event_id in missed:
            await until_heard(bob, room_id, event_id)
        await until_heard(alice, room_id, said)
        await until_agreed([alice, bob], room_id)

        async with asyncio.TaskGroup() as tasks:
            last = [tasks.create_task(alice.say(room_id, f"last {number}")) for number in range(MESSAGES)]
        await one.kill()  # while they are on their way
        await one.start()
        for task in last:
            await until_heard(bob, room_id, task.result())
        await bob.set_state(room_id, "m.room.topic", {"topic": "all is well"})
        await until_agreed([alice, bob], room_id)
