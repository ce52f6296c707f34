"""A server that is away for a while: all that was said arrives, and both servers come to the same state.

So many events are missed that they do not come in one piece, but fewer than the hundred of a room at which a
Synapse that returns begins to let go of what waits: its users then find that in the history only.
"""

from __future__ import annotations

import asyncio

import pytest

from synapse_compat_tests.room_views import (
    change_member,
    content_of,
    say_or_break_off,
    texts_of,
    until_all_heard,
    until_member,
)
from synapse_compat_tests.sides import Servers, Sides, neighbour_of
from tests.clients import Client
from tests.server_process import HomeserverProcess
from tests.shared_rooms import until_agreed

MISSED = 30


@pytest.mark.invariant("PROM-FED")
async def test_prom_fed_our_server_is_killed_and_started_again(
    sides: Sides, servers: Servers, alice: Client, sue: Client
) -> None:
    await is_away(sides, servers.lair, alice, sue, is_killed=True)


@pytest.mark.invariant("PROM-FED")
async def test_prom_fed_our_server_is_stopped_and_started_again(
    servers: Servers, alice: Client, sue: Client, version: str
) -> None:
    await is_away(Sides(alice, sue, version), servers.lair, alice, sue)


@pytest.mark.invariant("PROM-FED")
async def test_prom_fed_synapse_is_stopped_and_started_again(
    servers: Servers, alice: Client, sue: Client, version: str
) -> None:
    await is_away(Sides(alice, sue, version), servers.synapse, sue, alice)


async def is_away(
    sides: Sides, server: HomeserverProcess, absent: Client, other: Client, *, is_killed: bool = False
) -> None:
    """A server of the two that share a room is away, while the user of the other one goes on."""
    room_id = await sides.shared_room(power_level_content_override={"state_default": 0, "events": {}})
    late, banned = [await neighbour_of(other, name) for name in ("late", "banned")]
    await banned.join(room_id)
    await until_member([absent], room_id, banned, "join")

    async with asyncio.TaskGroup() as tasks:
        sending = [
            tasks.create_task(say_or_break_off(absent, room_id, f"last {number}")) for number in range(MISSED)
        ]
        await sending[0]
        await (server.kill() if is_killed else server.stop())
    said = [event_id for task in sending if (event_id := task.result()) is not None]
    said += [await other.say(room_id, f"missed {number}") for number in range(MISSED)]
    said.append(await other.set_state(room_id, "m.room.topic", {"topic": "what was missed"}))
    await late.join(room_id)
    if sides.host is other:
        await change_member(other, room_id, "ban", banned)
    said.append(await late.say(room_id, "I came late"))

    await server.start()
    said.append(await absent.set_state(room_id, "m.room.name", {"name": "I know of nothing yet"}))
    said.append(await absent.set_state(room_id, "m.room.topic", {"topic": "mine"}))
    said.append(await absent.say(room_id, "back"))
    said.append(await other.say(room_id, "welcome back"))
    await until_all_heard([absent, other], room_id, said)
    await until_agreed([absent, other], room_id)
    assert (await content_of(other, room_id, "m.room.name"))["name"] == "I know of nothing yet"
    texts = await texts_of(other, room_id)
    assert sorted(await texts_of(absent, room_id)) == sorted(texts)
    missed = [text for text in texts if text.startswith("missed")]
    assert missed == [f"missed {number}" for number in range(MISSED)]
