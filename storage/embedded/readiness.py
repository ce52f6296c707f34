"""Waiting for PostgreSQL to answer, and making sure that our database is there."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

import asyncpg

from homeserver.errors import LairError
from storage.embedded.data_folder_lock import DataFolderUnusable
from storage.embedded.postmaster import Postmaster
from storage.embedded.socket_folder import DATABASE, connection_url

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S: Final = 3.0
_LOOK_AGAIN_S: Final = 0.05
_CONNECT_LIMIT_S: Final = 10.0
_CREATE_LIMIT_S: Final = 600.0

_NOT_YET: Final = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class PostgresNotStarted(LairError):
    """PostgreSQL ended while it started."""


async def wait_until_ready(postmaster: Postmaster, socket_folder: Path) -> None:
    """Wait until PostgreSQL answers and has our database; progress is logged every few seconds.

    There is no limit: recovery after a crash takes as long as it takes. Raises PostgresNotStarted, with the
    end of PostgreSQL's log, when it ends instead.
    """
    began = reported = time.monotonic()
    while not await _provide_database(socket_folder):
        if await postmaster.ends_within(_LOOK_AGAIN_S):
            ending = await postmaster.wait()
            raise PostgresNotStarted(
                f"PostgreSQL ended while it started ({ending}); mend what it says, or restore a backup:\n"
                + postmaster.server_log.tail
            )
        now = time.monotonic()
        if now - reported >= PROGRESS_INTERVAL_S:
            log.info("PostgreSQL has been starting for %d s: %s", now - began, postmaster.server_log.newest)
            reported = now


async def is_ready(socket_folder: Path) -> bool:
    """Whether a PostgreSQL that another process runs answers and has our database."""
    try:
        connection = await asyncpg.connect(connection_url(socket_folder), timeout=_CONNECT_LIMIT_S)
    except PermissionError:
        raise DataFolderUnusable(
            f"data_dir: this user may not use the socket in {socket_folder}; "
            "run this as the user who started the server, or as root"
        ) from None
    except _NOT_YET:
        return False
    await connection.close(timeout=_CONNECT_LIMIT_S)
    return True


async def _provide_database(socket_folder: Path) -> bool:
    """Create our database if it is missing; False when PostgreSQL does not answer yet."""
    try:
        connection = await asyncpg.connect(
            connection_url(socket_folder, "postgres"), timeout=_CONNECT_LIMIT_S
        )
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
                log.info("creating the database %s", DATABASE)
                await connection.execute(f'CREATE DATABASE "{DATABASE}"', timeout=_CREATE_LIMIT_S)
        finally:
            await connection.close(timeout=_CONNECT_LIMIT_S)
    except _NOT_YET:
        return False
    except asyncpg.PostgresError as error:
        raise PostgresNotStarted(
            f"PostgreSQL answers, but with an error ({error}); mend what it says, or restore a backup"
        ) from None
    return True
