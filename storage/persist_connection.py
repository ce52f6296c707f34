"""The persister's own connection to PostgreSQL, and what to do when it breaks."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from storage.database import CONNECTION_LOST, Database, Transaction
from storage.event_batch import PERSIST, EventBatch

log = logging.getLogger(__name__)

RECONNECT_PAUSES_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5, *([1.0] * 60))
BUSY: Final = (
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)
MAX_BUSY: Final = 50
PAUSE_WHEN_BUSY_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch came to."""

    first_pos: int
    last_pos: int
    moved_rooms: frozenset[int]
    """Numbers of rooms that were not at the expected room_seq."""
    known_events: tuple[tuple[int, int], ...]
    """(index in the batch, number) of events whose ID is stored already."""
    known_txns: tuple[tuple[int, int], ...]
    """(index among the batch's keys, number of the event) of transactions that were answered before."""
    taken_aliases: frozenset[int]
    """Indexes, among the batch's new rooms, of those whose alias is another room's."""


class PersistConnection:
    """One connection with the prepared call. Used by one task at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Transaction | None = None
        self._statement: Any = None
        self._backend_pid = 0

    async def persist(self, batch: EventBatch) -> Outcome:
        """Store a batch. Raises one of CONNECTION_LOST (the outcome is unknown) or asyncpg.PostgresError."""
        if self._connection is None or self._connection.is_closed():
            await self._connect()
        arguments = batch.arguments()
        for attempt in range(MAX_BUSY):
            try:
                rows = await self._statement.fetch(*arguments)
                break
            except BUSY:
                # Another session held a row for 200 ms; nothing was stored, and the lock is free meanwhile.
                if attempt == MAX_BUSY - 1:
                    raise
                await asyncio.sleep(PAUSE_WHEN_BUSY_S)
        first_pos, last_pos = next(((row["a"], row["b"]) for row in rows if row["kind"] == 0), (0, 0))
        return Outcome(
            first_pos,
            last_pos,
            frozenset(row["a"] for row in rows if row["kind"] == 1),
            tuple((row["a"] - 1, row["b"]) for row in rows if row["kind"] == 2),
            tuple((row["a"] - 1, row["b"]) for row in rows if row["kind"] == 3),
            frozenset(row["a"] - 1 for row in rows if row["kind"] == 4),
        )

    async def reconnect(self) -> None:
        """Connect again, patiently, and make sure that the old session will not commit any more.

        Raises one of CONNECTION_LOST when the database stays away for a minute.
        """
        self.close()
        for pause_s in RECONNECT_PAUSES_S:
            try:
                await self._connect()
            except (*CONNECTION_LOST, asyncpg.PostgresError) as error:
                log.warning("the database is gone, connecting again: %s", error)
                await asyncio.sleep(pause_s)
            else:
                return
        await self._connect()

    def close(self) -> None:
        """End the connection at once."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _connect(self) -> None:
        connection = await self._database.dedicated()
        try:
            if self._backend_pid:
                await _end_session(connection, self._backend_pid)
            # The plans of the call are kept: they must not have been chosen while the tables were small.
            await connection.execute(
                "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off"
            )
            self._statement = await connection.prepare(PERSIST)
            self._backend_pid = connection.get_server_pid()
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection


async def _end_session(connection: Transaction, backend_pid: int) -> None:
    """End our former session if it is still there, and wait until it is gone with its transaction."""
    session = """
        SELECT pid FROM pg_stat_activity
        WHERE pid = $1 AND application_name = 'lair-chat' AND usename = current_user
    """
    while await connection.fetchval(session, backend_pid) is not None:
        await connection.fetchval("SELECT pg_terminate_backend($1)", backend_pid)
        await asyncio.sleep(0.02)
