"""Random stories of a Synapse and one or two Lairs: in the end they agree, and what is stored is right.

Where Synapse resolves states otherwise than the specification says, it has just the state that follows from
its known deviations.

LAIR_TEST_STORIES says how many stories are told, LAIR_TEST_FIRST_STORY the seed of the first. As Synapse
takes the time that it takes, a seed tells the same story only about.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

import aiohttp
import pytest

from homeserver.errors import Unavailable
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.clock import system_clock
from homeserver.services.server_keys import KeyRing
from synapse_compat_tests.deviations import resolve_deviating
from synapse_compat_tests.environment import synapse_python
from synapse_compat_tests.synapse_process import synapse_process
from synapse_compat_tests.synapse_room import SynapseServer
from tests.clients import Client
from tests.databases import running_postgres
from tests.federation.cut_lines import Lines, lines_between_servers
from tests.federation.homeservers import running_homeserver
from tests.federation.peers import Authority
from tests.federation.stories import OurServer, StoryServer, World, seeds, shorten_pauses
from tests.servers import unique_name

POLL_S: Final = 0.02


@pytest.fixture(scope="module")
async def world(
    http: aiohttp.ClientSession, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("world")
    authority = Authority.new(folder)
    process = synapse_process(await asyncio.to_thread(synapse_python), authority, folder / "synapse")
    async with AsyncExitStack() as stack:
        lines = stack.enter_context(lines_between_servers())
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        shorten_pauses(patched)
        hang_up_on(ServerName(process.name), lines, patched)
        postgres_url = await stack.enter_async_context(running_postgres(folder / "postgres"))
        await stack.enter_async_context(process)
        ours = []
        for number in range(2):
            files = tmp_path_factory.mktemp("server")
            server = await stack.enter_async_context(running_homeserver(postgres_url, authority, files))
            server.clock.advance(system_clock() - server.clock() + 1500 * number)
            ours.append(server)
        nobodies = [Client(http, process.url), *(server.nobody for server in ours)]
        users = [[await nobody.register(unique_name(name)) for name in "abc"] for nobody in nobodies]
        servers: list[StoryServer] = [SynapseServer(process, ours), *map(OurServer, ours)]
        clocks = [server.clock for server in ours]
        world = World(
            servers, users, lines, clocks, back_off_ms=0, poll_s=POLL_S, deviating=resolve_deviating
        )
        yield world
        world.check()


def hang_up_on(synapse: ServerName, lines: Lines, patched: pytest.MonkeyPatch) -> None:
    """Refuse what Synapse asks over a line that does not work: it gets no answer that it could use."""
    verify = KeyRing.verify_request

    async def verify_request(key_ring: KeyRing, origin: ServerName, request: JsonObject) -> None:
        if origin == synapse and not lines.works((origin, key_ring.own.server_name)):
            raise Unavailable("the line is cut")
        await verify(key_ring, origin, request)

    patched.setattr(KeyRing, "verify_request", verify_request)


@pytest.mark.invariant("PROM-CONV")
@pytest.mark.parametrize("seed", seeds(8))
async def test_prom_conv_synapse_agrees_in_the_end(world: World, seed: int) -> None:
    await world.tell(seed)
