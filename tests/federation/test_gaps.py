"""Events that lack something: what is missing is fetched, within bounds, and a gap that stays is bridged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.clients import Client
from tests.federation.peers import Peer
from tests.federation.played_rooms import PlayedRoom, send, user_of
from tests.federation.test_remote_joins import bodies, joined, state_of
from tests.servers import RunningServer

BOTH_VERSIONS = pytest.mark.parametrize("version", ["11", "12"])


async def until(condition: Any, limit_s: float = 20) -> Any:
    """Ask again and again until the answer is not false."""
    async with asyncio.timeout(limit_s):
        while not (found := await condition()):
            await asyncio.sleep(0.02)
    return found


@BOTH_VERSIONS
async def test_a_long_gap_that_cannot_be_closed_is_bridged(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    await joined(alice, room)
    tea = user_of(peer, "tea")
    lost = [room.event(tea, "m.room.message", {"body": f"lost {number}"}) for number in range(300)]
    room.event(tea, "m.room.topic", {"topic": "in the gap"}, "")
    last = room.event(tea, "m.room.message", {"body": "last"})
    assert (await send(here, peer, [last])).body == {"pdus": {last.event_id: {}}}

    async def has_come() -> bool:
        return "last" in await bodies(alice, room)

    await until(has_come)
    assert (await state_of(alice, room, "m.room.topic"))["topic"] == "in the gap"
    assert room.requests("state_ids") or room.requests("state")
    assert lost
