"""A Synapse and two Lairs that reach each other, and users of theirs. All stories share the three servers.

The tests of the core need none of them, only a process that has Synapse's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from synapse_compat_tests.environment import synapse_python
from synapse_compat_tests.sides import Servers, Sides
from synapse_compat_tests.synapse_core_process import SynapseCore
from synapse_compat_tests.synapse_process import synapse_process
from tests.clients import Client
from tests.federation.homeservers import homeserver_process
from tests.federation.peers import Authority
from tests.room_versions import OF_EACH_FORM
from tests.servers import unique_name

pytest_plugins = ["tests.invariants"]


@pytest.fixture(scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    """The servers, which are stopped when all stories are told."""
    folder = tmp_path_factory.mktemp("servers")
    authority = Authority.new(folder)
    synapse = synapse_process(await asyncio.to_thread(synapse_python), authority, folder / "synapse")
    async with (
        synapse,
        homeserver_process(authority, folder / "lair") as lair,
        homeserver_process(authority, folder / "second_lair") as second_lair,
    ):
        yield Servers(lair, second_lair, synapse)


@pytest.fixture(scope="session")
async def core() -> AsyncIterator[SynapseCore]:
    """Synapse's core without a server around it, which all tests ask."""
    with SynapseCore(await asyncio.to_thread(synapse_python)) as core:
        yield core


@pytest.fixture(scope="session")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """The connections of all clients."""
    async with aiohttp.ClientSession() as http:
        yield http


@pytest.fixture(params=OF_EACH_FORM)
def version(request: pytest.FixtureRequest) -> str:
    """The version of the story's rooms."""
    version: str = request.param
    return version


@pytest.fixture
async def alice(servers: Servers, http: aiohttp.ClientSession) -> Client:
    """A user of ours."""
    return await Client(http, servers.lair.url).register(unique_name("alice"))


@pytest.fixture
async def bob(servers: Servers, http: aiohttp.ClientSession) -> Client:
    """A user of our second server."""
    return await Client(http, servers.second_lair.url).register(unique_name("bob"))


@pytest.fixture
async def sue(servers: Servers, http: aiohttp.ClientSession) -> Client:
    """A user of Synapse."""
    return await Client(http, servers.synapse.url).register(unique_name("sue"))


@pytest.fixture(params=["our room", "their room"])
def sides(request: pytest.FixtureRequest, alice: Client, sue: Client, version: str) -> Sides:
    """Who makes the rooms of a story, and who is the guest there: each story is told both ways."""
    host, guest = (alice, sue) if request.param == "our room" else (sue, alice)
    return Sides(host, guest, version)
