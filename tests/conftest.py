"""What every test may ask for: a migrated database on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import settings

from storage.database import Database
from storage.migrate import migrate
from tests.databases import new_database, running_postgres

pytest_plugins = ["tests.invariants"]

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
async def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The URL of a PostgreSQL in which databases may be made."""
    async with running_postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(scope="session")
async def database_url(postgres_url: str) -> AsyncIterator[str]:
    """The URL of an empty database of this test run."""
    async with new_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
async def database(database_url: str) -> AsyncIterator[Database]:
    """The database that all tests share, migrated."""
    database = await Database.open(database_url, pool_size=5)
    try:
        await migrate(database)
        yield database
    finally:
        await database.close()
