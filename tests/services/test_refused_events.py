"""Events that were rejected or soft-failed stay so, whatever comes later and whoever names them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from homeserver.errors import NotFound
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import EventId, UserId
from homeserver.services.outliers import Outliers
from homeserver.services.room_history import PageRequest
from homeserver.services.sync import SyncRequest
from storage import stored_places
from storage.database import Database
from storage.event_flags import EventFlag
from tests.room_versions import versions_of_each_form
from tests.services.forked_rooms import ForkedRoom, flags_of, guest
from tests.services.incoming import IncomingStore, open_incoming
from tests.services.syncing import new_sync
from tests.storage.stores import now_ms

TOPIC = ("m.room.topic", "")


async def topic_in_state(room: ForkedRoom, store: IncomingStore | None = None) -> str | None:
    """The current topic as a process has it that has just started."""
    fresh = room if store is None else ForkedRoom(store, room.ref, room.model)
    events = await fresh.state.state(room.store.alice, room.room_id)
    return next((event["content"]["topic"] for event in events if event["type"] == "m.room.topic"), None)


async def flags(room: ForkedRoom, event_id: EventId) -> int:
    async with room.store.database.connection() as tx:
        return await flags_of(tx, event_id)


async def check_shown_to_nobody(room: ForkedRoom, *events: Pdu) -> None:
    alice, store = room.store.alice, room.store.store
    page = await room.history.messages(alice, room.room_id, PageRequest("b", limit=1000))
    answers = [page.chunk, json.loads(await new_sync(store).sync(alice, SyncRequest()))]
    for event in events:
        assert event.event_id not in str(answers)
        with pytest.raises(NotFound):
            await room.history.event(alice, room.room_id, event.event_id)


async def as_outliers(room: ForkedRoom, pdus: Sequence[Pdu]) -> None:
    """Store events as parts of an auth chain that was fetched."""
    store = room.store.store
    await Outliers(store.database, store.dictionaries, now_ms).store(room.ref, pdus)


async def room_with_rejected_topic(
    store: IncomingStore, version: str
) -> tuple[ForkedRoom, UserId, UserId, Pdu]:
    """A room in which dave, who has no power, has set the topic; with carol, who has."""
    carol, dave = guest("carol"), guest("dave")
    room = await ForkedRoom.new(store, carol, dave, room_version=version)
    await room.make_admin(carol)
    rejected = room.build(dave, *_topic("rejected"))
    return room, carol, dave, rejected


def _topic(text: str) -> tuple[str, dict[str, Any], str]:
    return "m.room.topic", {"topic": text}, ""


@pytest.mark.invariant("SEC-AUTH-3")
@versions_of_each_form
async def test_sec_auth_3_a_rejected_event_is_in_no_state_after_a_restart(
    database: Database, database_url: str, version: str
) -> None:
    async with open_incoming(database_url) as store:
        room, carol, dave, rejected = await room_with_rejected_topic(store, version)
        await room.receive(rejected)
        after = await room.say(dave, "after the rejected one", after=[rejected.event_id])
        async with open_incoming(database_url) as other:
            again = ForkedRoom(other, room.ref, room.model, ts=room.ts, heard=room.heard)
            other.alice = store.alice
            await again.say(carol, "after the restart")
            await again.event(carol, "m.room.name", {"name": "Tea"}, "", after=[after])
            assert await topic_in_state(room, other) is None
        assert TOPIC not in room.model.current
        assert await flags(room, rejected.event_id) & EventFlag.REJECTED
        await check_shown_to_nobody(room, rejected)


@pytest.mark.invariant("SEC-AUTH-3")
@versions_of_each_form
async def test_sec_auth_3_a_rejected_event_that_comes_again_stays_rejected(
    database: Database, database_url: str, version: str
) -> None:
    async with open_incoming(database_url) as store:
        room, carol, dave, rejected = await room_with_rejected_topic(store, version)
        await room.receive(rejected)
        # Dave is given the power that he lacked; then his event comes again, in every way that it can.
        await room.make_admin(carol, dave)
        await store.incoming.receive(_server(dave), room.ref, [rejected], wait=False)
        await as_outliers(room, [rejected])
        await store.incoming.receive(_server(dave), room.ref, [rejected], wait=False)
        assert await flags(room, rejected.event_id) & EventFlag.REJECTED
        assert await topic_in_state(room) is None
        await check_shown_to_nobody(room, rejected)
        # So is a state event that has it among its auth events, and what merges a fork with it.
        await room.say(carol, "merged", after=[*room.heads, rejected.event_id])
        assert await topic_in_state(room) is None


@pytest.mark.invariant("SEC-AUTH-3")
@versions_of_each_form
async def test_sec_auth_3_a_rejected_outlier_gets_no_place(
    database: Database, database_url: str, version: str
) -> None:
    """An event that its auth events refuse, fetched as part of an auth chain, is pushed later."""
    async with open_incoming(database_url) as store:
        room, _, dave, rejected = await room_with_rejected_topic(store, version)
        await as_outliers(room, [rejected])
        assert await flags(room, rejected.event_id) & EventFlag.REJECTED
        await store.incoming.receive(_server(dave), room.ref, [rejected], wait=False)
        async with store.database.connection() as tx:
            place = (await stored_places.load(tx, room.ref.nid, [rejected.event_id]))[rejected.event_id]
        assert place.seq is None and place.is_rejected
        assert await topic_in_state(room) is None
        await check_shown_to_nobody(room, rejected)


@pytest.mark.invariant("SEC-AUTH-3")
@versions_of_each_form
async def test_sec_auth_3_an_outlier_that_the_state_refuses_is_rejected_when_it_gets_its_place(
    database: Database, database_url: str, version: str
) -> None:
    """Its own auth events allow it: they are from when dave had the power."""
    async with open_incoming(database_url) as store:
        carol, dave = guest("carol"), guest("dave")
        room = await ForkedRoom.new(store, carol, dave, room_version=version)
        await room.make_admin(carol)
        for level in (50, 0):
            levels = {"users": {dave: level, carol: 100, **room.creator_level()}}
            await room.event(carol, "m.room.power_levels", levels, "")
            if level:
                old = room.build(dave, *_topic("old power"))
        stale = room.sealed_after(old, room.heads)
        await as_outliers(room, [stale])
        assert not await flags(room, stale.event_id) & EventFlag.REJECTED
        await room.receive(stale)
        assert await flags(room, stale.event_id) & EventFlag.REJECTED
        assert await topic_in_state(room) is None
        await check_shown_to_nobody(room, stale)


@pytest.mark.invariant("SEC-AUTH-3")
@versions_of_each_form
async def test_sec_auth_3_what_names_a_rejected_event_as_auth_event_is_rejected(
    database: Database, database_url: str, version: str
) -> None:
    async with open_incoming(database_url) as store:
        room, carol, dave, _ = await room_with_rejected_topic(store, version)
        levels = {"users": {dave: 100, carol: 100, **room.creator_level()}}
        usurped = await room.event(dave, "m.room.power_levels", levels, "")
        assert await flags(room, usurped.event_id) & EventFlag.REJECTED
        by_it = room.build(dave, *_topic("by usurped power"))
        named = [one for one in by_it.auth_events if room.model.events[one].type != "m.room.power_levels"]
        by_it = room.sealed_after(by_it, room.heads, auth=[*named, usurped.event_id])
        await room.receive(by_it)
        assert await flags(room, by_it.event_id) & EventFlag.REJECTED
        assert await topic_in_state(room) is None


@pytest.mark.invariant("SEC-AUTH-3")
@versions_of_each_form
async def test_sec_auth_3_no_resolution_brings_a_rejected_event_in(
    database: Database, database_url: str, version: str
) -> None:
    async with open_incoming(database_url) as store:
        room, carol, dave, rejected = await room_with_rejected_topic(store, version)
        fork = room.heads
        await room.receive(rejected)
        topics = [await room.event(carol, *_topic(f"topic {number}"), after=fork) for number in range(2)]
        ends = [await room.say(dave, "on top of it", after=[event.event_id]) for event in (rejected, *topics)]
        merged = await room.event(carol, "m.room.name", {"name": "merged"}, "", after=ends)
        assert room.model.current[TOPIC] in {topic.event_id for topic in topics}
        assert await topic_in_state(room) in ("topic 0", "topic 1")
        assert room.model.before[merged.event_id][TOPIC] != rejected.event_id
        await check_shown_to_nobody(room, rejected)


@pytest.mark.invariant("SEC-AUTH-3")
@versions_of_each_form
async def test_sec_auth_3_a_soft_failed_event_is_no_extremity_and_goes_to_no_client(
    database: Database, database_url: str, version: str
) -> None:
    async with open_incoming(database_url) as store:
        room, carol, dave, _ = await room_with_rejected_topic(store, version)
        before_ban = room.heads
        ban = EventDraft("m.room.member", {"membership": "ban"}, dave)
        await store.store.room_events.set_state(store.alice, room.room_id, ban)
        late = room.build(dave, "m.room.message", {"msgtype": "m.text", "body": "late"}, after=before_ban)
        later = room.build(
            dave, "m.room.member", {"membership": "join", "displayname": "D"}, dave, before_ban
        )
        for number in range(2):  # the second time it is known already
            await room.receive(late, later)
            for one in (late, later):
                assert await flags(room, one.event_id) & EventFlag.SOFT_FAILED, number
        for process in (store, None):
            if process is None:
                store.heads.forget(room.room_id)
            head = await store.heads.get(room.room_id)
            assert head is not None
            assert {late.event_id, later.event_id}.isdisjoint(head.prev_events)
            assert set(head.prev_events) == room.model.extremities
        await check_shown_to_nobody(room, late, later)
        # What follows it is heard, if its sender may speak, and leads over it to the extremities.
        await room.say(carol, "after it", after=[late.event_id])
        said = await store.store.send(store.alice, room.room_id, "quiet again")
        assert late.event_id not in room.model.events[said].prev_events
        await check_shown_to_nobody(room, late, later)


@versions_of_each_form
async def test_an_outlier_that_comes_in_its_place_is_an_event_like_any_other(
    database: Database, database_url: str, version: str
) -> None:
    async with open_incoming(database_url) as store:
        room, carol, _, _ = await room_with_rejected_topic(store, version)
        topic = room.build(carol, *_topic("accepted"))
        await as_outliers(room, [topic])
        await check_shown_to_nobody(room, topic)
        await room.receive(topic)
        assert await topic_in_state(room) == "accepted"
        event = await room.history.event(store.alice, room.room_id, topic.event_id)
        assert event["content"] == topic.content


def _server(user_id: UserId) -> Any:
    return user_id.partition(":")[2]
