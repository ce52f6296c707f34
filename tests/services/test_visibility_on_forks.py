"""Events that did not know of all there was when they came: /sync judges them as all other endpoints do."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeserver.errors import MatrixError
from homeserver.protocol.events import EventDraft
from homeserver.protocol.filters import EventFilter, parse_filter
from homeserver.protocol.identifiers import EventId
from homeserver.services.access_tokens import Requester
from homeserver.services.room_history import PageRequest
from homeserver.services.sync import Sync, SyncRequest
from storage.database import Database
from tests.services.forked_rooms import ForkedRoom, guest
from tests.services.incoming import IncomingStore, open_incoming
from tests.services.syncing import asking, listening, new_sync

EVERYTHING = parse_filter({"room": {"timeline": {"limit": 1000}, "include_leave": True}})


async def ask(sync: Sync, user: Requester, since: str | None = None) -> Any:
    """What is new; with the state apart from it, a timeline may hold events that lost a resolution."""
    request = SyncRequest(since=since, filter=EVERYTHING, state_after_key="state_after")
    return json.loads(await sync.sync(user, request))


def timeline(answer: Any, room: ForkedRoom) -> list[EventId]:
    rooms = [kind[room.room_id] for kind in answer["rooms"].values() if room.room_id in kind]
    return [event["event_id"] for one in rooms for event in one["timeline"]["events"]]


async def set_visibility(store: IncomingStore, room: ForkedRoom, value: str) -> None:
    draft = EventDraft("m.room.history_visibility", {"history_visibility": value}, "")
    await store.store.room_events.set_state(store.alice, room.room_id, draft)


async def sees(room: ForkedRoom, user: Requester, event_id: EventId) -> set[str]:
    """The endpoints that show a user an event."""
    found = set()
    try:
        page = await room.history.messages(user, room.room_id, PageRequest("b", limit=1000))
        if event_id in [event["event_id"] for event in page.chunk]:
            found.add("messages")
    except MatrixError:
        pass
    for name in ("event", "context"):
        try:
            if name == "event":
                await room.history.event(user, room.room_id, event_id)
            else:
                await room.history.context(user, room.room_id, event_id, 2, EventFilter())
            found.add(name)
        except MatrixError:
            pass
    return found


ALL = {"messages", "event", "context"}


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize("visibility", ["joined", "invited", "shared", "world_readable"])
async def test_sec_vis_1_who_is_in_the_room_sees_an_event_on_a_fork_by_the_state_before_it(
    database: Database, database_url: str, visibility: str
) -> None:
    async with open_incoming(database_url) as store:
        carol, bob = guest("carol"), await store.store.user("bob")
        room = await ForkedRoom.new(store, carol)
        await set_visibility(store, room, visibility)
        before_bob = room.heads
        await store.store.room_membership.join(bob, room.room_id, {})
        sync = listening(store.store, new_sync(store.store))
        tokens = {user.user_id: (await ask(sync, user))["next_batch"] for user in (store.alice, bob)}
        unaware = await room.say(carol, "bob is not here", after=before_bob)
        aware = await room.say(carol, "bob is here")

        is_shown = visibility in ("shared", "world_readable")
        assert await sees(room, bob, unaware) == (ALL if is_shown else set())
        assert await sees(room, bob, aware) == ALL
        for user in (store.alice, bob):
            expected = [unaware, aware] if is_shown or user is store.alice else [aware]
            for answering in (sync, new_sync(store.store)):
                assert timeline(await ask(answering, user, tokens[user.user_id]), room) == expected
            whole = timeline(await ask(sync, user), room)
            assert [one for one in whole if one in (unaware, aware)] == expected


@pytest.mark.invariant("SEC-VIS-1")
async def test_sec_vis_1_ordinary_forks_are_shown_from_memory(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_incoming(database_url) as store:
        carol = guest("carol")
        room = await ForkedRoom.new(store, carol)
        sync = listening(store.store, new_sync(store.store))
        token = (await ask(sync, store.alice))["next_batch"]
        fork = room.heads
        said = [await room.say(carol, str(number), after=fork) for number in range(3)]
        said.append(await store.store.send(store.alice, room.room_id, "merged"))
        execute = asyncpg.connection.Connection._execute

        async def refuse(*arguments: Any, **named: Any) -> Any:
            assert not asking.get(), "a query"
            return await execute(*arguments, **named)

        monkeypatch.setattr(asyncpg.connection.Connection, "_execute", refuse)
        asking.set(True)
        assert timeline(await ask(sync, store.alice, token), room) == said
        asking.set(False)


STEPS = st.lists(
    st.sampled_from(["say", "say", "fork", "fork", "visibility", "local", "name"]), min_size=4, max_size=14
)


@pytest.mark.invariant("SEC-VIS-1")
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, random=st.randoms(use_true_random=False))
async def test_sec_vis_1_every_endpoint_shows_the_same_events(
    database: Database, database_url: str, steps: list[str], random: Random
) -> None:
    """Two of our users come and go, guests send events that know of less, and the visibility changes."""
    async with open_incoming(database_url) as store:
        carol, dave = guest("carol"), guest("dave")
        locals_ = [await store.store.user(name) for name in ("bob", "erin")]
        room = await ForkedRoom.new(store, carol, dave)
        await room.make_admin(carol)
        sync = listening(store.store, new_sync(store.store))
        readers = [store.alice, *locals_]
        tokens = {user.user_id: [(await ask(sync, user))["next_batch"]] for user in readers}
        for number, step in enumerate(steps):
            known = [one for one in room.model.events if room.model.before[one]]
            after = random.sample(known[-6:], k=random.choice((1, 1, 2)))
            value = random.choice(("joined", "invited", "shared", "world_readable"))
            content = {"history_visibility": value}
            match step:
                case "say":
                    await room.say(dave, str(number))
                case "fork":
                    await room.say(random.choice((carol, dave)), str(number), after=after)
                case "visibility" if random.random() < 0.5:
                    await set_visibility(store, room, value)
                case "visibility":
                    await room.event(carol, "m.room.history_visibility", content, "", after=after)
                case "name":
                    await room.event(carol, "m.room.name", {"name": str(number)}, "", after=after)
                case _:
                    user, membership = random.choice(locals_), store.store.room_membership
                    try:
                        if random.random() < 0.5:
                            await membership.join(user, room.room_id, {})
                        else:
                            await membership.leave(user, room.room_id, {})
                    except MatrixError:
                        pass
            for user in readers:
                if random.random() < 0.3:
                    tokens[user.user_id].append((await ask(sync, user))["next_batch"])
        for user in readers:
            await _check(store, room, sync, user, tokens[user.user_id])


async def _check(
    store: IncomingStore, room: ForkedRoom, sync: Sync, user: Requester, tokens: list[str]
) -> None:
    try:
        page = await room.history.messages(user, room.room_id, PageRequest("f", limit=1000))
    except MatrixError:
        in_pages = []
    else:
        in_pages = [event["event_id"] for event in page.chunk]
    for event_id in room.model.events:
        if event_id in in_pages:
            await room.history.event(user, room.room_id, event_id)
    answer = await ask(sync, user)
    own = {one.event_id for one in room.model.events.values() if one.state_key == user.user_id}
    if room.room_id in answer["rooms"].get("join", {}):
        assert timeline(answer, room) == in_pages
    else:
        assert set(timeline(answer, room)) <= {*in_pages, *own}
    for token in tokens:
        from_memory = timeline(await ask(sync, user, token), room)
        assert from_memory == timeline(await ask(new_sync(store.store), user, token), room)
        assert set(from_memory) <= {*in_pages, *own}
