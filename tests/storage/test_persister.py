"""The persister on a real PostgreSQL: order, conflicts, repeated requests, broken connections."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest

from homeserver.errors import Forbidden, RoomInUse, Unavailable
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.services.event_building import build_event
from homeserver.services.room_creation import RoomRequest
from storage.database import Database
from storage.room_heads import RoomHead
from tests.storage.stores import Store, open_store


@asynccontextmanager
async def two_stores(database_url: str) -> AsyncIterator[tuple[Store, Store]]:
    async with open_store(database_url) as first, open_store(database_url) as second:
        yield first, second


async def test_a_room_is_made_whole_and_messages_follow_in_order(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        room_id = await store.room(alice, name="Tea")
        sent = [await store.send(alice, room_id, f"message {number}") for number in range(5)]

        timeline = await store.timeline(room_id)
    assert timeline[-5:] == sent
    assert [event.stored.pdu.event_id for event in store.told] == timeline


async def test_many_senders_share_commits_and_each_message_is_there_once(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        room_id = await store.room(alice)

        async def send(sender: int) -> list[str]:
            return [await store.send(alice, room_id, f"{sender}-{number}") for number in range(20)]

        sent = [event_id for batch in await asyncio.gather(*map(send, range(16))) for event_id in batch]

        timeline = await store.timeline(room_id)
        async with database.connection() as tx:
            positions = await tx.fetchval(
                "SELECT count(*) FROM stream JOIN rooms ON nid = room_nid WHERE room_id = $1", room_id
            )
    assert sorted(timeline[-320:]) == sorted(sent)
    assert positions == len(timeline)
    assert [event.pos for event in store.told] == sorted(event.pos for event in store.told)


@pytest.mark.invariant("PROM-TXN")
async def test_prom_txn_the_same_transaction_makes_one_event_at_once_later_and_elsewhere(
    database: Database, database_url: str
) -> None:
    async with two_stores(database_url) as (first, second):
        alice = await first.user("alice")
        room_id = await first.room(alice)
        together = await asyncio.gather(*(first.send(alice, room_id, f"{n}", "txn") for n in range(10)))
        later = await first.send(alice, room_id, "later", "txn")
        racing = await asyncio.gather(
            *(
                store.send(alice, room_id, "elsewhere", f"r{n}")
                for n in range(20)
                for store in (first, second)
            )
        )

        timeline = await first.timeline(room_id)
        other_room = await first.room(alice)
        in_other_room = await first.send(alice, other_room, "elsewhere", "txn")
    assert set(together) == {later}
    assert all(racing[2 * n] == racing[2 * n + 1] for n in range(20))
    assert len(set(racing)) == 20
    assert set(racing) | {later} <= set(timeline)
    assert in_other_room != later


async def test_two_processes_that_write_to_the_same_rooms_build_one_chain(
    database: Database, database_url: str
) -> None:
    async with two_stores(database_url) as stores:
        alice = await stores[0].user("alice")
        rooms = [await stores[0].room(alice) for _ in range(3)]

        async def send(seed: int) -> list[tuple[str, str]]:
            choice = random.Random(seed)
            return [
                (room_id := choice.choice(rooms), await stores[seed % 2].send(alice, room_id, f"{seed}-{n}"))
                for n in range(25)
            ]

        sent = [entry for batch in await asyncio.gather(*map(send, range(8))) for entry in batch]

        for room_id in rooms:
            timeline = await stores[0].timeline(room_id)
            assert sorted(event_id for room, event_id in sent if room == room_id) == sorted(
                set(timeline) & {event_id for _, event_id in sent}
            )
        await stores[0].stream.catch_up()
        await stores[1].stream.catch_up()
        told = [[event.pos for event in store.told] for store in stores]
    assert told[0] == told[1] == sorted(set(told[0]))


async def test_a_state_change_elsewhere_is_seen_by_the_next_decision(
    database: Database, database_url: str
) -> None:
    async with two_stores(database_url) as (first, second):
        alice, bob = await first.user("alice"), await first.user("bob")
        room_id = await first.room(alice)
        await first.room_membership.join(bob, room_id, {})
        await first.send(bob, room_id, "here")
        await second.room_membership.ban(alice, room_id, bob.user_id, {})

        with pytest.raises(Forbidden):
            await first.send(bob, room_id, "still here?")
        assert await first.send(alice, room_id, "gone") in await first.timeline(room_id)


async def test_a_repeated_transaction_is_answered_although_its_sender_may_no_longer_send(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice, bob = await store.user("alice"), await store.user("bob")
        room_id = await store.room(alice)
        await store.room_membership.join(bob, room_id, {})
        sent = await store.send(bob, room_id, "last words", "txn")
        await store.room_membership.kick(alice, room_id, bob.user_id, {})

        assert await store.send(bob, room_id, "last words", "txn") == sent
        with pytest.raises(Forbidden):
            await store.send(bob, room_id, "more", "txn2")


async def test_a_new_room_takes_its_alias_with_it_or_is_not_made(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        name = alice.user_id[1:].partition(":")[0]
        made = await asyncio.gather(
            *(store.room(alice, room_alias_name=name) for _ in range(5)), return_exceptions=True
        )
        async with database.connection() as tx:
            rooms = await tx.fetchval("SELECT count(*) FROM rooms")
            aliased = await tx.fetchval(
                "SELECT room_id FROM room_aliases JOIN rooms ON nid = room_nid WHERE room_alias = $1",
                f"#{name}:lair.test",
            )
            await store.room(alice)
            assert await tx.fetchval("SELECT count(*) FROM rooms") == rooms + 1
    assert sum(isinstance(outcome, RoomInUse) for outcome in made) == 4
    assert aliased in made


async def test_rooms_of_equal_content_in_the_same_millisecond_are_two_rooms(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        creation = store.room_creation
        rooms = await asyncio.gather(*(creation.create(alice, RoomRequest()) for _ in range(20)))
    assert len(set(rooms)) == 20


@pytest.mark.parametrize("depth", [-(2**62), 2**64], ids=["refused by a constraint", "no bigint"])
async def test_one_poisoned_change_fails_alone(database: Database, database_url: str, depth: int) -> None:
    async with open_store(database_url) as store, database.connection() as tx:
        alice = await store.user("alice")
        room_id = await store.room(alice)
        await store.send(alice, room_id, "the types are known now")

        def poison(head: RoomHead) -> Sequence[Pdu]:
            event = build_event(head, EventDraft("m.room.message", {}), alice.user_id, 1)
            return [replace(event, depth=depth)]

        await tx.execute("ALTER TABLE events ADD CONSTRAINT poison CHECK (depth >= 0)")
        try:
            outcomes = await asyncio.gather(
                *(store.send(alice, room_id, f"before {n}") for n in range(5)),
                store.persister.append(room_id, poison),
                *(store.send(alice, room_id, f"after {n}") for n in range(5)),
                return_exceptions=True,
            )
        finally:
            await tx.execute("ALTER TABLE events DROP CONSTRAINT poison")
        timeline = await store.timeline(room_id)
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(failed) == 1
    assert not isinstance(failed[0], Unavailable)
    assert set(timeline) >= {outcome for outcome in outcomes if isinstance(outcome, str)}


@pytest.mark.invariant("PROM-ACK")
async def test_prom_ack_a_broken_connection_loses_nothing_and_repeats_nothing(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        room_id = await store.room(alice)
        stopped = asyncio.Event()

        async def send(sender: int) -> list[str]:
            return [
                await store.send(alice, room_id, f"{sender}-{number}", f"{sender}-{number}")
                for number in range(60)
            ]

        async def break_connections() -> None:
            connection = await asyncpg.connect(database_url)
            for _ in range(12):
                if stopped.is_set():
                    break
                await connection.execute(
                    """
                    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE query LIKE '%FROM persist(%' AND datname = current_database()
                      AND pid <> pg_backend_pid()
                    """
                )
                await connection.execute("SELECT pg_sleep(0.03)")
            await connection.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(break_connections())
            senders = [tasks.create_task(send(sender)) for sender in range(8)]
        sent = [event_id for sender in senders for event_id in sender.result()]

        timeline = await store.timeline(room_id)
    assert len(sent) == len(set(sent)) == 480
    assert sorted(timeline[-480:]) == sorted(sent)
    told = [event.stored.pdu.event_id for event in store.told]
    assert told == timeline


async def test_a_transaction_is_the_same_only_with_the_same_device_and_path(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        room_id = await store.room(alice)
        message, reaction = EventDraft("m.room.message", {}), EventDraft("m.reaction", {})
        sent = [
            await store.room_events.send(alice, room_id, message, "1"),
            await store.room_events.send(replace(alice, device_nid=-1), room_id, message, "1"),
            await store.room_events.send(alice, room_id, reaction, "1"),
        ]
    assert len(set(sent)) == 3
