"""A conversation of two Lairs and a Synapse in one room, through joins, races, a crash and a catch-up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from synapse_compat_tests.room_views import (
    change_member,
    membership,
    say_or_break_off,
    texts_of,
    until_all_heard,
    until_member,
)
from synapse_compat_tests.sides import Servers, neighbour_of, server_of
from tests.clients import Client
from tests.shared_rooms import join_over, until_agreed

ROUNDS = 5
MISSED = 15


@pytest.mark.invariant("PROM-CONV")
@pytest.mark.parametrize("creator", ["alice", "sue"])
async def test_prom_conv_two_lairs_and_a_synapse(
    servers: Servers, alice: Client, bob: Client, sue: Client, version: str, creator: str
) -> None:
    everyone = [alice, bob, sue]
    host = alice if creator == "alice" else sue
    levels = {"state_default": 0, "events": {}}
    room_id = await host.create_room(room_version=version, power_level_content_override=levels)
    for guest in everyone:
        if guest is not host:
            await join_over(guest, room_id, server_of(host))
    for user in everyone:  # what is said in ignorance of a server's join is not sent to it
        await until_member(everyone, room_id, user, "join")
    await until_all_heard(everyone, room_id, [await user.say(room_id, "hello") for user in everyone])

    neighbours = [await neighbour_of(user) for user in everyone]
    async with asyncio.TaskGroup() as tasks:
        for neighbour in neighbours:
            tasks.create_task(neighbour.join(room_id))
    for neighbour in neighbours:
        await until_member(everyone, room_id, neighbour, "join")
    said = [event_id for number in range(ROUNDS) for event_id in await race(everyone, room_id, number)]
    await until_all_heard(everyone, room_id, said)
    await until_agreed([*everyone, *neighbours], room_id)

    async with asyncio.TaskGroup() as tasks:
        sending = [
            tasks.create_task(say_or_break_off(user, room_id, f"last {number} of {user.user_id}"))
            for number in range(MISSED)
            for user in everyone
        ]
        await sending[0]
        await servers.lair.kill()
    said = [event_id for task in sending if (event_id := task.result()) is not None]
    said += await race([bob, sue], room_id, ROUNDS)
    said += [await user.say(room_id, f"missed {number}") for number in range(MISSED) for user in (bob, sue)]
    await neighbours[1].in_room("POST", room_id, "leave", {})
    if host is sue:
        await change_member(sue, room_id, "ban", neighbours[0])
    await servers.lair.start()
    said += await race(everyone, room_id, ROUNDS + 1)
    await until_all_heard(everyone, room_id, said)
    await until_agreed(everyone, room_id)

    await servers.synapse.stop()
    said = await race([alice, bob], room_id, ROUNDS + 2)
    said += [
        await user.say(room_id, f"missed too {number}") for number in range(MISSED) for user in (alice, bob)
    ]
    if host is alice:
        await change_member(alice, room_id, "ban", neighbours[0])
    await servers.synapse.start()
    said += await race(everyone, room_id, ROUNDS + 3)
    await until_all_heard(everyone, room_id, said)
    await until_agreed(everyone, room_id)

    texts = [sorted(await texts_of(user, room_id)) for user in everyone]
    assert texts[0] == texts[1] == texts[2]
    for user in everyone:
        members = [await membership(user, room_id, neighbour) for neighbour in neighbours]
        assert members == ["ban", "leave", "join"]


async def race(users: Sequence[Client], room_id: str, number: int) -> list[str]:
    """All talk and set the topic at once; returns the IDs of their events."""
    async with asyncio.TaskGroup() as tasks:
        doing = [
            tasks.create_task(
                user.set_state(room_id, "m.room.topic", {"topic": f"{number} of {user.user_id}"})
            )
            for user in users
        ]
        doing += [tasks.create_task(user.say(room_id, f"{number} of {user.user_id}")) for user in users]
    return [task.result() for task in doing]
