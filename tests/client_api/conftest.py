"""Running servers, and users of theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from storage.database import Database
from tests.clients import Client
from tests.servers import RunningServer, StartServer, running_server, unique_name


@pytest.fixture(scope="session")
async def server(database: Database, database_url: str) -> AsyncIterator[RunningServer]:
    """The server that all tests share; its clock stands still."""
    async with running_server(database_url) as server:
        yield server


@pytest.fixture
async def start_server(database: Database, database_url: str) -> AsyncIterator[StartServer]:
    """Starts servers of the test's own."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> RunningServer:
            return await stack.enter_async_context(running_server(database_url, **settings))

        yield start


@pytest.fixture
async def alice(server: RunningServer) -> Client:
    """A user of the shared server."""
    return await server.nobody.register(unique_name("alice"))


@pytest.fixture
async def bob(server: RunningServer) -> Client:
    """Another user of the shared server."""
    return await server.nobody.register(unique_name("bob"))
