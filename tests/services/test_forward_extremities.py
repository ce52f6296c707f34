"""Rooms with many forks: an event of ours brings them together, now and then."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from homeserver.errors import NotFound
from homeserver.protocol.events import MAX_PREV_EVENTS, EventDraft
from homeserver.protocol.identifiers import EventId, UserId
from homeserver.services.forward_extremities import MAX_EXTREMITIES, ForwardExtremities
from homeserver.services.room_history import PageRequest
from homeserver.services.sync import SyncRequest
from storage import served_events
from storage.database import Database
from storage.event_batch import DUMMY_TYPE
from storage.event_flags import EventFlag
from storage.stream import StreamEvent
from tests.room_versions import versions_of_each_form
from tests.services.forked_rooms import ForkedRoom, flags_of, guest
from tests.services.incoming import IncomingStore, open_incoming
from tests.services.room_models import OTHER_SERVER, check
from tests.services.syncing import listening, new_sync
from tests.storage.stores import SERVER, now_ms

LONG_S = 3600.0


@asynccontextmanager
async def mending(store: IncomingStore, pause_s: float = LONG_S) -> AsyncIterator[ForwardExtremities]:
    """The service at work on all rooms of a store."""
    extremities = ForwardExtremities(store.store.persister, store.database, SERVER, now_ms, pause_s)
    store.store.stream.listen(extremities.listen)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(extremities.run())
        try:
            yield extremities
        finally:
            running.cancel()


async def fork(room: ForkedRoom, count: int) -> list[EventId]:
    """So many messages that know nothing of each other."""
    after, sender = room.heads, guest("erin")
    join = await room.join(sender, after=after)
    return [await room.say(sender, f"fork {number}", after=[join.event_id]) for number in range(count)]


def dummies(room: ForkedRoom) -> list[StreamEvent]:
    return [
        event
        for event in room.store.store.told
        if event.room.nid == room.ref.nid and event.stored.pdu.type == DUMMY_TYPE
    ]


async def until_dummies(room: ForkedRoom, count: int) -> list[StreamEvent]:
    async with asyncio.timeout(20):
        while len(dummies(room)) < count:
            await asyncio.sleep(0.01)
    return dummies(room)


async def settled(extremities: ForwardExtremities) -> None:
    """Wait until the service has nothing more to look at."""
    async with asyncio.timeout(20):
        while extremities.waiting:
            await asyncio.sleep(0.01)


async def count_extremities(room: ForkedRoom) -> int:
    return await room.store.store.persister.consider(room.room_id, lambda head: len(head.extremities))


async def test_too_many_forks_are_brought_together_by_an_event_that_clients_never_see(
    database: Database, database_url: str
) -> None:
    async with open_incoming(database_url) as store, mending(store):
        room = await ForkedRoom.new(store, guest("carol"))
        sync = listening(store.store, new_sync(store.store))
        token = json.loads(await sync.sync(store.alice, SyncRequest()))["next_batch"]
        said = await fork(room, MAX_EXTREMITIES + 1)
        [dummy] = await until_dummies(room, 1)
        pdu = dummy.stored.pdu
        assert (pdu.content, pdu.sender, pdu.state_key) == ({}, store.alice.user_id, None)
        assert set(pdu.prev_events) == set(said)
        assert dummy.flags & EventFlag.FED and dummy.flags & EventFlag.SOLE
        assert await count_extremities(room) == 1

        for answering in (sync, new_sync(store.store)):
            for since in (None, token):
                answer = await answering.sync(store.alice, SyncRequest(since=since))
                assert DUMMY_TYPE not in answer.decode()
        page = await room.history.messages(store.alice, room.room_id, PageRequest("b", limit=1000))
        assert DUMMY_TYPE not in str(page)
        with pytest.raises(NotFound):
            await room.history.event(store.alice, room.room_id, pdu.event_id)
        async with store.database.connection() as tx:
            assert await served_events.find(tx, room.ref.nid, [pdu.event_id])


async def test_few_forks_are_left_to_those_who_speak(database: Database, database_url: str) -> None:
    async with open_incoming(database_url) as store, mending(store) as extremities:
        room = await ForkedRoom.new(store, guest("carol"))
        await fork(room, MAX_EXTREMITIES)
        await settled(extremities)
        assert await count_extremities(room) == MAX_EXTREMITIES
        assert dummies(room) == []


async def test_a_room_gets_one_such_event_in_a_while_and_the_rest_after_it(
    database: Database, database_url: str
) -> None:
    async with open_incoming(database_url) as store:
        room = await ForkedRoom.new(store, guest("carol"))
        async with mending(store) as extremities:
            await fork(room, MAX_EXTREMITIES + 1)
            await until_dummies(room, 1)
            await fork(room, MAX_EXTREMITIES + 1)
            await settled(extremities)
            assert len(dummies(room)) == 1
        async with mending(store, pause_s=0.05):
            await room.say(guest_of(room), "one more fork", after=[dummies(room)[0].stored.pdu.event_id])
            await until_dummies(room, 2)
            await fork(room, MAX_EXTREMITIES + 1)  # noted while the room is left alone, looked at after that
            await until_dummies(room, 3)
            assert await count_extremities(room) == 1


@versions_of_each_form
async def test_an_event_of_ours_can_always_name_all_extremities(
    database: Database, database_url: str, version: str
) -> None:
    """The state before it would be another one than that of what it names."""
    async with open_incoming(database_url) as store:
        carol = guest("carol")
        room = await ForkedRoom.new(store, carol, room_version=version)
        await room.make_admin(carol)
        after = room.heads
        topics = [
            room.build(carol, "m.room.topic", {"topic": str(number)}, "", after=after)
            for number in range(3 * MAX_PREV_EVENTS)
        ]
        await room.receive(*topics[:50])
        await room.receive(*topics[50:])
        assert await count_extremities(room) < MAX_PREV_EVENTS
        assert {len(dummy.stored.pdu.prev_events) for dummy in dummies(room)} == {MAX_PREV_EVENTS}
        draft = EventDraft("m.room.name", {"name": "all of them"}, "")
        await store.store.room_events.set_state(store.alice, room.room_id, draft)
        assert await count_extremities(room) == 1
        await check(store, room.ref, room.model)


async def test_events_come_although_forks_cannot_be_brought_together(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_incoming(database_url) as store:
        room = await ForkedRoom.new(store, guest("carol"))
        said = await fork(room, MAX_PREV_EVENTS)

        async def fail(*_: object) -> None:
            raise ValueError("nothing works")

        monkeypatch.setattr(ForwardExtremities, "bring_together", fail)
        sender = guest_of(room)
        more = [
            room.build(sender, "m.room.message", {"body": body}, after=[said[0]]) for body in ("one", "two")
        ]
        await room.receive(*more)
        assert await count_extremities(room) == MAX_PREV_EVENTS + 1
        assert [record.message for record in caplog.records if record.exc_info] == [
            f"the forks of room {room.room_id} cannot be brought together"
        ]


@pytest.mark.parametrize("can_speak", [True, False])
async def test_only_who_may_speak_sends_it(database: Database, database_url: str, can_speak: bool) -> None:
    async with open_incoming(database_url) as store, mending(store) as extremities:
        carol = guest("carol")
        room = await ForkedRoom.new(store, carol, room_version="11")
        bob = await store.store.user("bob")
        await store.store.room_membership.join(bob, room.room_id, {})
        content: dict[str, Any] = {
            "users": {store.alice.user_id: 100 if can_speak else 0, carol: 100},
            "events": {DUMMY_TYPE: 50},
        }
        draft = EventDraft("m.room.power_levels", content, "")
        await store.store.room_events.set_state(store.alice, room.room_id, draft)
        await fork(room, MAX_EXTREMITIES + 1)
        if can_speak:
            [dummy] = await until_dummies(room, 1)
            assert dummy.stored.pdu.sender == store.alice.user_id
        else:
            await settled(extremities)
            assert dummies(room) == []
            await fork(room, MAX_PREV_EVENTS + 5)
            assert dummies(room) == []
            assert await count_extremities(room) > MAX_PREV_EVENTS


async def test_where_nobody_may_speak_it_is_not_tried_for_each_event(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_incoming(database_url) as store:
        room = await ForkedRoom.new(store, room_version="11")
        levels = {"users": {store.alice.user_id: 0}, "events": {DUMMY_TYPE: 50}}
        draft = EventDraft("m.room.power_levels", levels, "")
        await store.store.room_events.set_state(store.alice, room.room_id, draft)
        await fork(room, MAX_PREV_EVENTS + 5)
        assert await count_extremities(room) == MAX_PREV_EVENTS + 5
        tried = f"nobody here may bring the forks of room {room.room_id} together"
        assert caplog.messages.count(tried) == 1


async def test_such_events_of_other_servers_are_not_shown_either(
    database: Database, database_url: str
) -> None:
    async with open_incoming(database_url) as store:
        carol = guest("carol")
        room = await ForkedRoom.new(store, carol)
        dummy = await room.event(carol, DUMMY_TYPE, {})
        answer = await new_sync(store.store).sync(store.alice, SyncRequest())
        assert dummy.event_id not in answer.decode()
        async with store.database.connection() as tx:
            assert await flags_of(tx, dummy.event_id) & EventFlag.SERVERS_ONLY


def guest_of(room: ForkedRoom) -> UserId:
    """A guest who is in the room."""
    members = [key[1] for key in room.model.current if key[0] == "m.room.member"]
    return next(UserId(user_id) for user_id in members if user_id.endswith(OTHER_SERVER))
