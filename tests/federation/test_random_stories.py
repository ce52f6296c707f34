"""Random stories of two or three servers: when all is over they agree, and all that is stored is right.

LAIR_TEST_STORIES says how many stories are told, LAIR_TEST_FIRST_STORY the seed of the first.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random

import pytest

from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.services import incoming_events, outgoing_transactions
from tests.clients import Client
from tests.federation.cut_lines import Lines, lines_between_servers
from tests.federation.homeservers import running_homeserver
from tests.federation.peers import Authority
from tests.federation.stories import Story
from tests.servers import RunningServer

FIRST_STORY = int(os.environ.get("LAIR_TEST_FIRST_STORY", "1"))
STORIES = int(os.environ.get("LAIR_TEST_STORIES", "20"))
USERS = ("alice", "bob", "carol")


@dataclass
class World:
    """Three servers, their users, and the lines between them."""

    servers: list[RunningServer]
    users: list[list[Client]]
    lines: Lines


@pytest.fixture(scope="module")
async def world(
    postgres_url: str, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        lines = stack.enter_context(lines_between_servers())
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(outgoing_transactions, "FIRST_PAUSE_S", 0.0)  # of the event loop's time
        patched.setattr(incoming_events, "PAUSE_S", 0.02)
        patched.setattr(incoming_events, "MAX_PAUSE_S", 0.5)
        servers = []
        for number in range(3):
            folder = tmp_path_factory.mktemp("server")
            server = await stack.enter_async_context(running_homeserver(postgres_url, authority, folder))
            server.clock.advance(1500 * number)
            servers.append(server)
        users = [[await server.nobody.register(name) for name in USERS] for server in servers]
        yield World(servers, users, lines)


async def tell(world: World, seed: int) -> None:
    """Tell a whole story."""
    random = Random(seed)
    number = 3 if random.random() < 0.25 else 2
    users = [user for of_server in world.users[:number] for user in of_server[: 5 - number]]
    clocks = [server.clock for server in world.servers]
    is_hasty = random.random() < 0.3
    story = Story(random, world.servers[:number], users, world.lines, clocks, is_hasty=is_hasty)
    try:
        await story.begin(random.choice(list(ROOM_VERSIONS)))
        await story.go_on(random.randint(2, 5))
        await story.end()
        await story.check()
    finally:
        world.lines.mend()


@pytest.mark.invariant("PROM-CONV")
@pytest.mark.parametrize("seed", range(FIRST_STORY, FIRST_STORY + STORIES))
async def test_prom_conv_servers_agree_in_the_end(world: World, seed: int) -> None:
    await tell(world, seed)
