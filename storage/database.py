"""The pool of connections to PostgreSQL and its transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import asyncpg

from homeserver.errors import LairError, Unavailable

Transaction: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
"""A connection that storage functions run their queries on, inside a transaction or not."""

MIN_SERVER_VERSION: Final = 14
CONNECT_TIMEOUT_S: Final = 30.0
COMMAND_TIMEOUT_S: Final = 60.0
ACQUIRE_TIMEOUT_S: Final = 30.0

CONNECTION_LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""What asyncpg raises when a connection or the server behind it is gone; the outcome is then unknown."""

_SETTINGS: Final = {
    "application_name": "lair-chat",
    "jit": "off",
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "60s",
    "default_transaction_isolation": "read committed",
    "timezone": "UTC",
}


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached at this moment."""


class DatabaseUnsuitable(LairError):
    """The database that the configuration names cannot hold Lair Chat's data."""


class Database:
    """A pool of connections; every part of the server that reads or writes shares it."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], dsn: str) -> None:
        self._pool = pool
        self._dsn = dsn

    @classmethod
    async def open(cls, dsn: str, pool_size: int) -> Database:
        """Connect; raises DatabaseUnsuitable for a server that is too old or a database not in UTF-8."""
        try:
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=pool_size,
                reset=_keep_session,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                server_settings=_SETTINGS,
            )
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            raise DatabaseUnsuitable(
                f"database.url: PostgreSQL refuses the connection ({error}); "
                "check the user, the password and that the database exists"
            ) from None
        except OSError as error:
            raise DatabaseUnsuitable(
                f"database.url: PostgreSQL cannot be reached ({error}); check the address and that it runs"
            ) from None
        database = cls(pool, dsn)
        try:
            await database._check_server()
        except BaseException:
            pool.terminate()
            raise
        return database

    async def close(self) -> None:
        """Close every connection, waiting a little for those in use."""
        try:
            await asyncio.wait_for(self._pool.close(), timeout=10)
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Transaction]:
        """A connection on which each statement commits by itself: for one statement, or only reads.

        Raises DatabaseUnavailable when PostgreSQL is gone.
        """
        try:
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                yield connection
        except CONNECTION_LOST as error:
            if isinstance(error, ValueError):  # an argument that cannot be sent is a mistake of ours
                raise
            raise DatabaseUnavailable("the database cannot be reached; try again") from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A connection whose statements commit together at the end, or not at all.

        Raises DatabaseUnavailable when PostgreSQL is gone; whether the commit arrived is then unknown.
        """
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def dedicated(self) -> Transaction:
        """A connection outside the pool, for one owner that keeps it: the caller closes it."""
        return await asyncpg.connect(
            self._dsn,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings=_SETTINGS,
        )

    @property
    def size(self) -> int:
        """Connections that are open now."""
        return int(self._pool.get_size())

    @property
    def idle(self) -> int:
        """Open connections that nobody uses now."""
        return int(self._pool.get_idle_size())

    async def _check_server(self) -> None:
        async with self.connection() as tx:
            number = int(await tx.fetchval("SHOW server_version_num"))
            encoding = await tx.fetchval("SHOW server_encoding")
        if number < MIN_SERVER_VERSION * 10_000:
            raise DatabaseUnsuitable(
                f"database.url: PostgreSQL {number // 10_000} is too old; use {MIN_SERVER_VERSION} or newer"
            )
        if encoding != "UTF8":
            raise DatabaseUnsuitable(
                f"database.url: the database's encoding is {encoding}; create it with ENCODING 'UTF8'"
            )


async def _keep_session(connection: Any) -> None:
    """Sessions carry no state that the next user could trip over, so nothing is reset between uses."""
