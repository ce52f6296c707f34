"""Events from outside that somebody else stores, without a place, while they are on their way to theirs."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from homeserver.protocol.event_hashes import encode_event_id
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import UserId
from homeserver.services.outliers import Outliers
from storage import outliers, stored_places
from storage.auth_graphs import AuthGraphs
from storage.database import Database
from storage.room_heads import RoomRef
from tests.services.forked_rooms import ForkedRoom
from tests.services.incoming import IncomingStore, open_incoming
from tests.services.room_models import OTHER_SERVER, Author, shared_room
from tests.storage.stores import now_ms

BOB = UserId(f"@bob:{OTHER_SERVER}")


async def room_with_bob(store: IncomingStore) -> tuple[RoomRef, Pdu]:
    """A room of ours that bob has joined, and the next event of bob's."""
    model, ref = await shared_room(store, "12")
    author = Author(Random(1), model, [BOB])

    def member(name: str) -> Pdu:
        parents = sorted(model.extremities)
        draft = EventDraft("m.room.member", {"membership": "join", "displayname": name}, BOB)
        return author.event(draft, BOB, parents, model.state_before(parents))

    join = member("bob")
    model.arrive(join)
    await store.incoming.receive(OTHER_SERVER, ref, [join], wait=False)
    return ref, member("bob the second")


async def has_place(store: IncomingStore, ref: RoomRef, pdu: Pdu) -> bool:
    async with store.database.connection() as tx:
        return (await stored_places.load(tx, ref.nid, [pdu.event_id]))[pdu.event_id].seq is not None


async def test_an_event_that_is_fetched_meanwhile_gets_its_place(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_incoming(database_url) as store:
        ref, pdu = await room_with_bob(store)
        fetched = Outliers(store.database, store.store.dictionaries, now_ms)
        load = stored_places.load

        async def load_and_be_overtaken(*args: object) -> dict[object, object]:
            found = await load(*args)  # type: ignore[arg-type]
            await fetched.store(ref, [pdu])
            return found  # type: ignore[return-value]

        with monkeypatch.context() as patch:
            patch.setattr(stored_places, "load", load_and_be_overtaken)
            await store.incoming.receive(OTHER_SERVER, ref, [pdu], wait=False)

        assert await has_place(store, ref, pdu)


async def test_an_event_that_is_stored_at_the_same_moment_gets_its_place(
    database: Database, database_url: str
) -> None:
    async with open_incoming(database_url) as store:
        ref, pdu = await room_with_bob(store)
        async with (
            asyncio.TaskGroup() as tasks,
            store.database.connection() as tx,
            tx.transaction(),  # another process stores it, and has not committed yet
        ):
            await tx.execute(
                """
                INSERT INTO events (nid, room_nid, sub, depth, ts, recv_ts, type_nid, sender_nid,
                                    skey_nid, flags, auth, event_id, json)
                SELECT 999999999, room_nid, 0, depth, ts, recv_ts, type_nid, sender_nid, skey_nid,
                       flags, auth, $2, json FROM events WHERE room_nid = $1 AND room_seq = 2
                """,
                ref.nid,
                encode_event_id(pdu.event_id),
            )
            tasks.create_task(store.incoming.receive(OTHER_SERVER, ref, [pdu], wait=False))
            while not await blocked_sessions(store.database):
                await asyncio.sleep(0.01)

        assert await has_place(store, ref, pdu)


@pytest.mark.parametrize("rows_at_once", [1, 500])
async def test_what_names_an_event_that_was_fetched_meanwhile_gets_to_know_its_number(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    async with open_incoming(database_url) as store:
        room = await ForkedRoom.new(store)
        levels = {"users": room.creator_level()}
        first = room.build(store.alice.user_id, "m.room.power_levels", levels, "")
        room.hear(first)
        second = room.build(store.alice.user_id, "m.room.topic", {"topic": "tea"}, "")
        assert first.event_id in second.auth_events
        services = [Outliers(store.database, store.store.dictionaries, now_ms) for _ in range(2)]
        bodies = stored_places.bodies

        async def load_and_be_overtaken(*args: Any) -> Any:
            found = await bodies(*args)
            patch.undo()
            await services[1].store(room.ref, [first])
            return found

        monkeypatch.setattr(outliers, "ROWS_AT_ONCE", rows_at_once)
        with monkeypatch.context() as patch:
            patch.setattr(stored_places, "bodies", load_and_be_overtaken)
            await services[0].store(room.ref, [first, second])

        async with store.database.connection() as tx:
            places = await stored_places.load(tx, room.ref.nid, [*second.auth_events, second.event_id])
            auth = await tx.fetchval(
                "SELECT auth FROM events WHERE nid = $1", places.pop(second.event_id).nid
            )
        assert set(auth) == {place.nid for place in places.values()}


async def blocked_sessions(database: Database) -> int:
    """How many sessions wait for a transaction of another one."""
    async with database.connection() as tx:
        query = """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0
        """
        return int(await tx.fetchval(query))


async def test_graphs_are_read_with_the_one_connection_that_is_held(
    database: Database, database_url: str
) -> None:
    async with open_incoming(database_url) as store:
        _, ref = await shared_room(store, "12")
    one_connection = await Database.open(database_url, pool_size=1)
    try:
        graphs = AuthGraphs(one_connection)
        async with asyncio.timeout(10), graphs.using(ref.nid), one_connection.connection() as tx:
            graph = await graphs.graph(tx, ref.nid, [])
    finally:
        await one_connection.close()
    assert len(graph) > 0
