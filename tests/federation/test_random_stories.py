"""Random stories of two or three servers: when all is over they agree, and all that is stored is right.

LAIR_TEST_STORIES says how many stories are told, LAIR_TEST_FIRST_STORY the seed of the first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.federation.cut_lines import lines_between_servers
from tests.federation.homeservers import running_homeserver
from tests.federation.peers import Authority
from tests.federation.stories import OurServer, World, seeds, shorten_pauses


@pytest.fixture(scope="module")
async def world(
    postgres_url: str, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        lines = stack.enter_context(lines_between_servers())
        shorten_pauses(stack.enter_context(pytest.MonkeyPatch.context()))
        servers = []
        for number in range(3):
            folder = tmp_path_factory.mktemp("server")
            server = await stack.enter_async_context(running_homeserver(postgres_url, authority, folder))
            server.clock.advance(1500 * number)
            servers.append(server)
        users = [
            [await server.nobody.register(name) for name in ("alice", "bob", "carol")] for server in servers
        ]
        clocks = [server.clock for server in servers]
        world = World([OurServer(server) for server in servers], users, lines, clocks)
        yield world
        world.check()


@pytest.mark.invariant("PROM-CONV")
@pytest.mark.parametrize("seed", seeds(20))
async def test_prom_conv_servers_agree_in_the_end(world: World, seed: int) -> None:
    await world.tell(seed)
