"""The heads that a process keeps: never an older one in the place of a newer one, and not too many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from homeserver.protocol.events import EventDraft
from homeserver.services.event_building import build_event
from storage import room_heads
from storage.database import Database
from storage.room_heads import RoomHead
from tests.storage.stores import Store, open_store


@asynccontextmanager
async def slow_reads(database: Database) -> AsyncIterator[None]:
    """Heads that are loaded meanwhile get the extremities, and wait for the state until the block ends."""
    async with database.transaction() as tx:
        await tx.execute("LOCK TABLE room_state_log IN ACCESS EXCLUSIVE MODE")
        yield


async def waiting_read(database: Database) -> None:
    """Return once a head's state is waited for."""
    query = """
        SELECT true FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE NOT granted AND relation = 'room_state_log'::regclass AND datname = current_database() LIMIT 1
    """
    async with asyncio.timeout(20), database.connection() as tx:
        while not await tx.fetchval(query):
            await tx.execute("SELECT pg_sleep(0.005)")


async def test_a_head_that_was_loaded_slowly_does_not_replace_a_newer_one(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        room_id = await store.room(alice)
        newer = store.heads.cached(room_id)
        assert newer is not None
        store.heads.forget(room_id)
        async with asyncio.TaskGroup() as tasks, slow_reads(database):
            loading = tasks.create_task(store.heads.get(room_id))
            await waiting_read(database)
            newer.add(build_event(newer, EventDraft("m.room.message", {}), alice.user_id, 1))
            store.heads.keep(newer)
        assert loading.result() is newer
        assert store.heads.cached(room_id) is newer


async def test_a_head_that_was_forgotten_while_it_was_loaded_is_not_kept(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        room_id = await store.room(alice)
        store.heads.forget(room_id)
        async with asyncio.TaskGroup() as tasks, slow_reads(database):
            loading = tasks.create_task(store.heads.get(room_id))
            await waiting_read(database)
            store.heads.forget(room_id)
        assert loading.result() is not None
        assert store.heads.cached(room_id) is None
        assert await store.heads.get(room_id) is store.heads.cached(room_id)


async def kept(store: Store, number_of_rooms: int) -> list[RoomHead]:
    alice = await store.user("alice")
    heads = [store.heads.cached(await store.room(alice)) for _ in range(number_of_rooms)]
    return [head for head in heads if head is not None]


async def test_the_heads_used_longest_ago_go_when_there_is_no_room_for_all(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as store:
        heads = await kept(store, 3)
        monkeypatch.setattr(room_heads, "MAX_LOADED_EVENTS", 2 * heads[0].loaded)
        for _ in range(5):
            store.heads.keep(heads[2])
            store.heads.keep(heads[1])
        assert [store.heads.cached(head.room.room_id) for head in heads] == [None, heads[1], heads[2]]


async def test_a_head_that_is_too_large_by_itself_is_loaded_anew(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as store:
        [head] = await kept(store, 1)
        room_id = head.room.room_id
        monkeypatch.setattr(room_heads, "MAX_LOADED_EVENTS", head.loaded - 1)
        store.heads.keep(head)
        assert len(store.heads) == 0
        anew = await store.heads.get(room_id)
        assert anew is not None
        assert (anew.seq, anew.loaded) == (head.seq, len(room_heads.FIRST_KEYS))
