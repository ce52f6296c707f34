"""Databases that tests make and drop again."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from storage.embedded.supervisor import EmbeddedPostgres

MAX_CONNECTIONS: Final = 80
"""What the tests of one process open together."""


@asynccontextmanager
async def running_postgres(folder: Path) -> AsyncIterator[str]:
    """The URL of a PostgreSQL in which databases may be made: LAIR_TEST_DATABASE_URL, or the embedded one."""
    url = os.environ.get("LAIR_TEST_DATABASE_URL")
    if url is not None:
        yield url
        return
    postgres = EmbeddedPostgres(folder, "nobody", MAX_CONNECTIONS)
    await postgres.start()
    try:
        yield postgres.url
    finally:
        await postgres.stop()


@asynccontextmanager
async def new_database(postgres_url: str) -> AsyncIterator[str]:
    """The URL of an empty database, which is there while the block lasts."""
    name = f"lair_test_{uuid4().hex}"
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
    try:
        yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()
