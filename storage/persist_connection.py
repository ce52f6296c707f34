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

_SETTINGS: Final = """
    SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off;
    SET plan_cache_mode = force_generic_plan
"""
"""The statements of the call are planned once, which costs more than to run them: so their plans must not be
such as are good only for tables that are still small."""

RECONNECT_PAUSES_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5, *([1.0] * 60))
RECONNECT_LIMIT_S: Final = 60.0
BUSY: Final = (
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)
MAX_BUSY: Final = 50
MAX_OVERTAKEN: Final = 3
"""So often another session may store an event without a place just after it was not found."""
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
    redacted: tuple[tuple[int, int], ...]
    """(number of an event that is redacted now, number of the redaction)."""


class PersistConnection:
    """One connection with the prepared call. Used by one task at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Transaction | None = None
        self._statement: Any = None
        self._session: asyncpg.Record | None = None

    async def persist(self, batch: EventBatch) -> Outcome:
        """Store a batch. Raises one of CONNECTION_LOST (the outcome is unknown) or asyncpg.PostgresError."""
        if self._connection is None or self._connection.is_closed():
            await self._connect()
        arguments = batch.arguments()
        busy = overtaken = 0
        while True:
            try:
                rows = await self._statement.fetch(*arguments)
                break
            except BUSY:
                # Another session held a row for 200 ms; nothing was stored, and the lock is free meanwhile.
                busy += 1
                if busy == MAX_BUSY:
                    raise
                await asyncio.sleep(PAUSE_WHEN_BUSY_S)
            except asyncpg.UniqueViolationError:
                overtaken += 1
                if overtaken > MAX_OVERTAKEN:
                    raise
        first_pos, last_pos = next(((row["a"], row["b"]) for row in rows if row["kind"] == 0), (0, 0))
        return Outcome(
            first_pos,
            last_pos,
            frozenset(row["a"] for row in rows if row["kind"] == 1),
            tuple((row["a"] - 1, row["b"]) for row in rows if row["kind"] == 2),
            tuple((row["a"] - 1, row["b"]) for row in rows if row["kind"] == 3),
            frozenset(row["a"] - 1 for row in rows if row["kind"] == 4),
            tuple((row["a"], row["b"]) for row in rows if row["kind"] == 5),
        )

    async def reconnect(self) -> None:
        """Connect again, patiently, and make sure that the old session will not commit any more.

        Raises TimeoutError when the database stays away for a minute.
        """
        self.close()
        async with asyncio.timeout(RECONNECT_LIMIT_S):
            for pause_s in RECONNECT_PAUSES_S:
                try:
                    await self._connect()
                except CONNECTION_LOST as error:
                    log.warning("the database is gone, connecting again: %s", error or type(error).__name__)
                    await asyncio.sleep(pause_s)
                else:
                    return
        raise TimeoutError("the database stays away")

    def close(self) -> None:
        """End the connection at once."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _connect(self) -> None:
        try:
            connection = await self._database.dedicated()
        except asyncpg.PostgresError as error:  # it has no connection to spare, say
            raise ConnectionError(str(error)) from error
        try:
            if self._session is not None:
                async with asyncio.timeout(RECONNECT_LIMIT_S):
                    await _end_session(connection, self._session)
            await connection.execute(_SETTINGS)
            self._statement = await connection.prepare(PERSIST)
            self._session = await connection.fetchrow(
                "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            )
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection


async def _end_session(connection: Transaction, session: asyncpg.Record) -> None:
    """End our former session if it is still there, and wait until it is gone with its transaction."""
    find = "SELECT pid FROM pg_stat_activity WHERE (pid, backend_start) = ($1, $2)"
    while (pid := await connection.fetchval(find, session["pid"], session["backend_start"])) is not None:
        await connection.fetchval("SELECT pg_terminate_backend($1)", pid)
        await asyncio.sleep(0.02)
