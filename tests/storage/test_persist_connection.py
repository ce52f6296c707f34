"""When the call that stores a batch is made again, and how often."""

from __future__ import annotations

from secrets import randbits
from typing import Any

import asyncpg
import pytest

from homeserver.protocol.identifiers import RoomId
from homeserver.protocol.room_versions import room_version
from storage import persist_connection
from storage.database import Database
from storage.event_batch import EventBatch
from storage.persist_connection import MAX_BUSY, MAX_OVERTAKEN, PersistConnection
from storage.room_heads import RoomRef

BUSY, OVERTAKEN = asyncpg.LockNotAvailableError, asyncpg.UniqueViolationError


class FailingCalls:
    """A database in which the call fails in these ways, one after the other, and then stores the batch."""

    def __init__(self, *failures: type[Exception]) -> None:
        self.failures = list(failures)

    async def dedicated(self) -> FailingCalls:
        return self

    async def prepare(self, _: str) -> FailingCalls:
        return self

    async def execute(self, _: str) -> None:
        pass

    async def fetchrow(self, _: str) -> None:
        pass

    async def fetch(self, *_: object) -> list[dict[str, int]]:
        if self.failures:
            raise self.failures.pop(0)
        return [{"kind": 0, "a": 7, "b": 7}]


@pytest.mark.parametrize(
    "failures",
    [
        [BUSY] * (MAX_BUSY - 1),
        [OVERTAKEN] * MAX_OVERTAKEN,
        [BUSY] * (MAX_BUSY - 1) + [OVERTAKEN] * MAX_OVERTAKEN,
    ],
    ids=["busy", "overtaken", "both"],
)
async def test_a_batch_is_stored_although_others_hold_rows_or_store_its_events(
    monkeypatch: pytest.MonkeyPatch, failures: list[type[Exception]]
) -> None:
    monkeypatch.setattr(persist_connection, "PAUSE_WHEN_BUSY_S", 0)
    database: Any = FailingCalls(*failures)
    assert (await PersistConnection(database).persist(EventBatch(0))).first_pos == 7

    database = FailingCalls(*failures, failures[-1])
    with pytest.raises(failures[-1]):
        await PersistConnection(database).persist(EventBatch(0))


async def test_a_room_that_was_purged_before_anything_of_it_came_has_moved(database: Database) -> None:
    purged = RoomRef(randbits(60), RoomId("!purged:test"), room_version("12"))
    batch = EventBatch(0)
    batch.add_room(purged, 0)
    connection = PersistConnection(database)
    try:
        outcome = await connection.persist(batch)
    finally:
        connection.close()
    assert outcome.moved_rooms == {purged.nid}
