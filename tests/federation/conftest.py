"""Homeservers on loopback addresses, with certificates of the test's own authority."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from storage.database import Database
from tests.clients import Client
from tests.federation.homeservers import federation_settings, running_homeserver
from tests.federation.peers import Authority, OurSide, Peer, our_side, running_peer
from tests.servers import MovableClock, RunningServer, StartServer, running_server, unique_name


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority whose certificates all servers have."""
    return Authority.new(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def clock() -> MovableClock:
    """The clock of our side and of its peers."""
    return MovableClock()


@pytest.fixture
async def peer(authority: Authority, clock: MovableClock) -> AsyncIterator[Peer]:
    """Another homeserver."""
    async with running_peer(authority, clock) as peer:
        yield peer


@pytest.fixture
async def notary(authority: Authority, clock: MovableClock) -> AsyncIterator[Peer]:
    """One more homeserver, which is asked for the keys of others."""
    async with running_peer(authority, clock) as notary:
        yield notary


@pytest.fixture
async def ours(database: Database, authority: Authority, clock: MovableClock) -> AsyncIterator[OurSide]:
    """Our services."""
    async with our_side(database, authority, clock) as ours:
        yield ours


@pytest.fixture(scope="session")
async def here(
    postgres_url: str, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningServer]:
    """A real server, which others reach; its clock stands still."""
    async with running_homeserver(postgres_url, authority, tmp_path_factory.mktemp("here")) as server:
        yield server


@pytest.fixture(scope="session")
async def there(
    postgres_url: str, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningServer]:
    """Another real server."""
    async with running_homeserver(postgres_url, authority, tmp_path_factory.mktemp("there")) as server:
        yield server


@pytest.fixture
async def alice(here: RunningServer) -> Client:
    """A user of `here`."""
    return await here.nobody.register(unique_name("alice"))


@pytest.fixture
async def bob(there: RunningServer) -> Client:
    """A user of `there`."""
    return await there.nobody.register(unique_name("bob"))


@pytest.fixture
async def start_server(
    database: Database, database_url: str, authority: Authority
) -> AsyncIterator[StartServer]:
    """Starts servers called "test" that reach others, but that others do not reach."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> RunningServer:
            federation = {**federation_settings(authority), **settings.pop("federation", {})}
            return await stack.enter_async_context(
                running_server(database_url, federation=federation, **settings)
            )

        yield start
