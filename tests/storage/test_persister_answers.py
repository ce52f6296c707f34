"""What the persister answers, and when: only what is durable, and only from a room's newest head."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from homeserver.errors import Forbidden, RoomInUse, Unavailable
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import EventId, RoomAlias, RoomId
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.event_building import build_event
from homeserver.services.room_creation import InitialState
from storage import persist_connection
from storage.database import Database, DatabaseUnavailable
from storage.decisions import AliasTaken, UnknownRoom
from storage.event_batch import NewRoom
from storage.nids import NidBlocks
from storage.room_heads import RoomHead
from tests.storage.stores import Store, open_store

LOCK_STREAM = "SELECT pg_advisory_xact_lock(7810776)"


async def set_topic(store: Store, user: Requester, room_id: RoomId, topic: str) -> EventId:
    return await store.room_events.set_state(user, room_id, EventDraft("m.room.topic", {"topic": topic}, ""))


async def topic_of(store: Store, room_id: RoomId) -> object:
    """The topic that the database holds."""
    store.heads.forget(room_id)
    head = await store.heads.get(room_id)
    assert head is not None
    [stored] = (await store.heads.load_keys(head, [("m.room.topic", "")])).values()
    return None if stored is None else stored.pdu.content["topic"]


async def waiting_for_locks(database: Database, lock_type: str) -> None:
    """Return once a session waits for a lock."""
    query = """
        SELECT true FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE NOT granted AND locktype = $1 AND datname = current_database() LIMIT 1
    """
    async with asyncio.timeout(20), database.connection() as tx:
        while not await tx.fetchval(query, lock_type):
            await tx.execute("SELECT pg_sleep(0.005)")


async def outcome_of(work: Awaitable[object]) -> object:
    """What it returns or raises."""
    try:
        return await work
    except Exception as error:
        return error


@asynccontextmanager
async def held(database: Database, statement: str, *arguments: object) -> AsyncIterator[None]:
    """What a statement locks stays locked for the block."""
    async with database.transaction() as tx:
        await tx.execute(statement, *arguments)
        yield


@pytest.mark.invariant("PROM-ACK")
async def test_prom_ack_an_answer_that_rests_on_another_decision_of_its_batch_waits_for_the_commit(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice, bob = await store.user("alice"), await store.user("bob")
        room_id = await store.room(alice)
        await set_topic(store, alice, room_id, "coffee")
        await store.room_membership.join(bob, room_id, {})
        async with asyncio.TaskGroup() as tasks, held(database, LOCK_STREAM):
            outcomes = [
                tasks.create_task(outcome_of(work))
                for work in (
                    set_topic(store, alice, room_id, "tea"),
                    set_topic(store, alice, room_id, "tea"),
                    store.room_membership.ban(alice, room_id, bob.user_id, {}),
                    set_topic(store, bob, room_id, "mate"),
                )
            ]
            await waiting_for_locks(database, "advisory")
            assert not any(outcome.done() for outcome in outcomes)
        changed, unchanged, _, refused = (outcome.result() for outcome in outcomes)
        timeline = await store.timeline(room_id)
    assert changed == unchanged
    assert changed in timeline
    assert isinstance(refused, Forbidden)


@pytest.mark.invariant("PROM-READ")
async def test_prom_read_that_nothing_is_to_be_done_is_said_of_the_newest_head_only(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as first, open_store(database_url) as second:
        alice = await first.user("alice")
        room_id = await first.room(alice)
        tea = await set_topic(first, alice, room_id, "tea")
        await set_topic(second, alice, room_id, "coffee")
        tea_again = await set_topic(first, alice, room_id, "tea")
        topic = await topic_of(first, room_id)
    assert tea_again != tea
    assert topic == "tea"


@pytest.mark.invariant("PROM-READ")
async def test_prom_read_an_event_is_refused_by_the_newest_head_only(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as first, open_store(database_url) as second:
        alice, bob = await first.user("alice"), await first.user("bob")
        room_id = await first.room(alice)
        with pytest.raises(Forbidden):
            await first.send(bob, room_id, "may I?")
        await second.room_membership.join(bob, room_id, {})
        sent = await first.send(bob, room_id, "I may!")
        assert sent in await first.timeline(room_id)


async def test_a_room_of_many_unknown_types_is_made_at_once(database: Database, database_url: str) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        name = uuid4().hex
        state = [InitialState(f"{name}.{number}", f"{name}/{number}", {}) for number in range(250)]
        room_id = await store.room(alice, initial_state=state)
        assert len(await store.timeline(room_id)) > 250


async def test_large_rooms_that_are_made_at_once_are_all_made(database: Database, database_url: str) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        state = [InitialState(f"test.{number}", "", {}) for number in range(300)]
        await store.room(alice, initial_state=state)
        rooms = await asyncio.gather(*(store.room(alice, initial_state=state) for _ in range(10)))
        assert {len(await store.timeline(room_id)) for room_id in rooms} == {306}


async def test_an_alias_that_another_session_is_taking_is_taken(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        other_room = await store.room(alice)
        name = uuid4().hex
        take_alias = "INSERT INTO room_aliases SELECT $1, nid, $2 FROM rooms WHERE room_id = $3"
        arguments = (f"#{name}:lair.test", alice.user_nid, other_room)
        async with asyncio.TaskGroup() as tasks, held(database, take_alias, *arguments):
            made = tasks.create_task(outcome_of(store.room(alice, room_alias_name=name)))
            await waiting_for_locks(database, "transactionid")
    assert isinstance(made.result(), RoomInUse)


async def test_positions_of_memberships_are_those_of_the_stream_also_beside_rooms_that_moved(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as first, open_store(database_url) as second:
        alice = await first.user("alice")
        rooms = [await first.room(alice) for _ in range(8)]
        users = [await first.user(f"user{number}") for number in range(6)]
        await asyncio.gather(
            *(
                store.room_membership.join(user, room_id, {"from": number})
                for user in users
                for room_id in rooms
                for number, store in enumerate((first, second, first))
            )
        )
        async with database.connection() as tx:
            wrong = await tx.fetchval(
                """
                SELECT count(*) FROM memberships JOIN rooms ON rooms.nid = memberships.room_nid
                LEFT JOIN stream ON (stream.pos, stream.ref) = (memberships.pos, memberships.event_nid)
                WHERE stream.pos IS NULL AND room_id = ANY ($1)
                """,
                rooms,
            )
    assert wrong == 0


async def test_a_member_event_that_no_row_can_be_made_of_fails_alone(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        room_id = await store.room(alice)

        def poison(head: RoomHead) -> Sequence[Pdu]:
            draft = EventDraft("m.room.member", {"membership": "join"}, alice.user_id)
            return [replace(build_event(head, draft, alice.user_id, 1), content={"membership": ["join"]})]

        outcomes = await asyncio.gather(
            *(store.send(alice, room_id, f"before {n}") for n in range(5)),
            store.persister.append(room_id, poison),
            *(store.send(alice, room_id, f"after {n}") for n in range(5)),
            return_exceptions=True,
        )
        timeline = await store.timeline(room_id)
    assert isinstance(outcomes[5], KeyError)
    assert set(timeline) >= {outcome for outcome in outcomes if isinstance(outcome, str)}
    assert sum(isinstance(outcome, str) for outcome in outcomes) == 10


async def test_a_repeated_transaction_does_not_hold_up_the_others_of_its_room(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        room_id = await store.room(alice)
        sent = await store.send(alice, room_id, "once", "txn")
        head = store.heads.cached(room_id)

        again, other = await asyncio.gather(
            store.send(alice, room_id, "twice", "txn"), store.send(alice, room_id, "other")
        )
        assert again == sent
        assert (await store.timeline(room_id))[-2:] == [sent, other]
        assert store.heads.cached(room_id) is head


async def test_what_waits_is_answered_when_the_persister_ends_early(
    database: Database, database_url: str
) -> None:
    async def fail_while_a_room_waits(waiting: asyncio.TaskGroup) -> None:
        async with open_store(database_url) as store:
            alice = await store.user("alice")
            outcomes.append(waiting.create_task(outcome_of(store.room(alice))))
            await waiting_for_locks(database, "advisory")
            raise RuntimeError("another part of the server has failed")

    outcomes: list[asyncio.Task[object]] = []
    async with asyncio.timeout(20), held(database, LOCK_STREAM), asyncio.TaskGroup() as tasks:
        failure = await outcome_of(fail_while_a_room_waits(tasks))
    assert isinstance(failure, ExceptionGroup)
    assert isinstance(outcomes[0].result(), Unavailable)


async def test_what_is_stored_is_told_later_where_it_cannot_be_told_at_once(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        room_id = await store.room(alice)

        async def publish(*_: object) -> None:
            raise DatabaseUnavailable("gone between the commit and the reading of a gap")

        with monkeypatch.context() as patch:
            patch.setattr(store.stream, "publish", publish)
            sent = await store.send(alice, room_id, "hello")
        async with asyncio.timeout(10):
            while sent not in [event.stored.pdu.event_id for event in store.told]:
                await asyncio.sleep(0)
        told = [event.stored.pdu.event_id for event in store.told if event.room.room_id == room_id]
        assert told == await store.timeline(room_id)


def failing(
    times: int, error: Exception, then: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """A function that fails so often, and then does what another does."""
    left = [error] * times

    async def fail(*arguments: object) -> object:
        if left:
            raise left.pop()
        return await then(*arguments)

    return fail


async def test_a_database_without_a_connection_to_spare_is_waited_for(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = asyncpg.TooManyConnectionsError("sorry, too many clients already")
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        dedicated = failing(3, full, store.database.dedicated)
        monkeypatch.setattr(store.database, "dedicated", dedicated)
        assert await store.room(alice)


async def test_the_persister_outlives_a_failure_to_get_numbers(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        full = asyncpg.DiskFullError("no space left")
        monkeypatch.setattr(NidBlocks, "reserve", failing(1, full, NidBlocks.reserve))
        async with asyncio.timeout(10):
            assert await outcome_of(store.room(alice)) is full
            assert await store.room(alice)


async def test_a_database_that_stays_away_is_not_waited_for_without_end(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> object:
        return await asyncio.get_running_loop().create_future()

    async with open_store(database_url) as store:
        alice = await store.user("alice")
        monkeypatch.setattr(persist_connection, "RECONNECT_LIMIT_S", 0.1)
        full = asyncpg.CannotConnectNowError("the database system is starting up")
        monkeypatch.setattr(store.database, "dedicated", failing(1, full, never))
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable):
                await store.room(alice)


async def test_a_failure_says_what_it_is_about(database: Database, database_url: str) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        new_room = NewRoom(room_version("12"), alice.user_id, RoomAlias("#failures:test"))

        def decide(head: RoomHead) -> Sequence[Pdu]:
            content: JsonObject = {"room_version": "12"}
            return [build_event(head, EventDraft("m.room.create", content, ""), alice.user_id, store.clock())]

        await store.persister.create(new_room, decide)
        with pytest.raises(AliasTaken, match="#failures:test is another room's"):
            await store.persister.create(new_room, decide)
        with pytest.raises(UnknownRoom, match="!nowhere has no event here"):
            await store.persister.append(RoomId("!nowhere"), decide)
