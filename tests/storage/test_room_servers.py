"""Which servers were in which rooms, and what they are owed, as the rows say that `persist` writes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from secrets import randbits

import pytest

from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId
from homeserver.services.access_tokens import Requester
from homeserver.services.event_building import build_event
from storage import room_servers, sent_positions
from storage.database import Database
from storage.migrate import migrate
from storage.placement import Placed
from storage.room_heads import RoomHead
from storage.room_servers import Interval, Server
from storage.sent_positions import SentPositions
from tests.databases import new_database
from tests.storage.stores import SERVER, Store, now_ms, open_store

BOB = UserId("@bob:tea.test")
CAROL = UserId("@carol:tea.test")
DAVE = UserId("@dave:cake.test")


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    """A store on a database of its own."""
    async with new_database(postgres_url) as url:
        database = await Database.open(url, pool_size=1)
        await migrate(database)
        await database.close()
        async with open_store(url) as store:
            yield store


async def member(store: Store, room_id: RoomId, user_id: UserId, membership: str) -> int:
    """A user of another server joins or leaves; the event's place in the room."""

    def decide(head: RoomHead) -> list[Placed]:
        draft = EventDraft("m.room.member", {"membership": membership}, user_id)
        return [Placed(build_event(head, draft, user_id, now_ms()), randbits(60), 0, ())]

    await store.persister.append(room_id, decide)
    return store.told[-1].seq


async def change(store: Store, alice: Requester, room_id: RoomId, user_id: UserId, membership: str) -> int:
    """Our user changes the membership of another one; the event's place in the stream."""

    def decide(head: RoomHead) -> list[Pdu]:
        draft = EventDraft("m.room.member", {"membership": membership}, user_id)
        return [build_event(head, draft, alice.user_id, now_ms())]

    await store.persister.append(room_id, decide)
    return store.told[-1].pos


async def server(store: Store, name: str) -> Server:
    return Server(await store.dictionaries.atoms.nid(name), ServerName(name))


async def due(store: Store, name: str, after: int, upto: int | None = None, most: int = 100) -> list[EventId]:
    """The IDs of what a server is owed."""
    nid = (await server(store, name)).nid
    async with store.database.connection() as tx:
        events = await sent_positions.due(
            tx, nid, after, store.stream.position if upto is None else upto, most
        )
    assert [event.pos for event in events] == sorted(event.pos for event in events)
    return [event.pdu().event_id for event in events]


async def test_a_server_is_in_a_room_from_its_first_user_to_its_last(store: Store) -> None:
    alice = await store.user("alice")
    room_id = await store.room(alice)
    own, tea, cake = [await server(store, name) for name in (SERVER, "tea.test", "cake.test")]
    room_nid = store.told[-1].room.nid
    bob_came = await member(store, room_id, BOB, "join")
    await member(store, room_id, CAROL, "join")
    dave_came = await member(store, room_id, DAVE, "join")
    await member(store, room_id, BOB, "leave")
    carol_left = await member(store, room_id, CAROL, "leave")
    async with store.database.connection() as tx:
        intervals = await room_servers.intervals(tx, {room_nid: 1, room_nid + 1: 1})
        newer = await room_servers.intervals(tx, {room_nid: carol_left + 1})
    bob_is_back = await member(store, room_id, BOB, "join")
    async with store.database.connection() as tx:
        later = await room_servers.intervals(tx, {room_nid: 1})

    own_interval = Interval(own, 2, None)
    assert set(intervals[room_nid]) == {
        own_interval, Interval(tea, bob_came, carol_left), Interval(cake, dave_came, None)
    }  # fmt: skip
    assert intervals[room_nid + 1] == []
    assert set(newer[room_nid]) == {own_interval, Interval(cake, dave_came, None)}
    assert set(later[room_nid]) - set(intervals[room_nid]) == {Interval(tea, bob_is_back, None)}
    assert [Interval(tea, 3, 5).is_owed(seq) for seq in range(2, 7)] == [False, False, True, True, False]


async def test_what_is_due_are_our_events_while_a_server_was_in_the_room(store: Store) -> None:
    alice = await store.user("alice")
    room_id, elsewhere = await store.room(alice), await store.room(alice)
    await store.send(alice, room_id, "before")
    await member(store, room_id, BOB, "join")
    start = store.stream.position
    one = await store.send(alice, room_id, "one")
    await member(store, room_id, DAVE, "join")
    await member(store, elsewhere, BOB, "join")
    two = await store.send(alice, elsewhere, "two")
    await change(store, alice, room_id, BOB, "ban")
    ban = store.told[-1].stored.pdu.event_id
    banned = store.stream.position
    await store.send(alice, room_id, "after")
    three = await store.send(alice, elsewhere, "three")

    assert await due(store, "tea.test", 0) == [one, two, ban, three]
    assert await due(store, "tea.test", start, most=2) == [one, two]
    assert await due(store, "tea.test", start, banned) == [one, two, ban]
    assert await due(store, "tea.test", banned) == [three]
    assert await due(store, "cake.test", store.stream.position) == []


async def test_the_withdrawal_of_an_invite_is_due_until_it_has_come(store: Store) -> None:
    alice = await store.user("alice")
    room_id = await store.room(alice)
    await change(store, alice, room_id, BOB, "invite")
    before = store.stream.position
    pos = await change(store, alice, room_id, BOB, "leave")
    room_nid, withdrawal = store.told[-1].room.nid, store.told[-1].stored.pdu.event_id
    tea = await server(store, "tea.test")
    await store.send(alice, room_id, "after")
    owed = [await due(store, "tea.test", after) for after in (before, pos)]
    async with store.database.connection() as tx:
        extra = await sent_positions.extra_servers(tx, [(room_nid, pos), (room_nid, before)])
        news = [await room_servers.with_news(tx, after) for after in (before, pos)]
        await sent_positions.save(tx, before, {}, [])
        await sent_positions.sweep_extra(tx)
        await sent_positions.save(tx, pos, {tea.nid: before}, [])
        await sent_positions.sweep_extra(tx)
        kept = await sent_positions.extra_servers(tx, [(room_nid, pos)])
        await sent_positions.save(tx, pos, {}, [tea.nid])
        await sent_positions.sweep_extra(tx)
        swept = await sent_positions.extra_servers(tx, [(room_nid, pos)])

    assert owed == [[withdrawal], []]
    assert extra == kept == {pos: [tea]}
    assert swept == {}
    assert [tea in servers for servers in news] == [True, False]


async def test_servers_have_news_if_something_came_while_they_were_there(store: Store) -> None:
    alice = await store.user("alice")
    room_id, elsewhere = await store.room(alice), await store.room(alice)
    await member(store, room_id, BOB, "join")
    await member(store, elsewhere, DAVE, "join")
    tea, cake = await server(store, "tea.test"), await server(store, "cake.test")
    start = store.stream.position
    await store.send(alice, room_id, "one")
    await member(store, room_id, BOB, "leave")
    left = store.stream.position
    await store.send(alice, room_id, "two")
    async with store.database.connection() as tx:
        news = [set(await room_servers.with_news(tx, after)) & {tea, cake} for after in (0, start, left)]
        active = await room_servers.in_active_rooms(tx, SERVER, 0, 10)
        none_active = await room_servers.in_active_rooms(tx, SERVER, now_ms() + 1000, 10)
    await member(store, room_id, CAROL, "join")
    async with store.database.connection() as tx:
        more_active = await room_servers.in_active_rooms(tx, SERVER, 0, 10)
        first = await room_servers.in_active_rooms(tx, SERVER, 0, 1)

    assert news == [{tea, cake}, {tea}, set()]
    assert active == [cake]
    assert none_active == []
    assert more_active == [tea, cake]
    assert first == [tea]


async def test_positions_are_kept_for_each_server_and_for_all_others(store: Store) -> None:
    tea, cake = await server(store, "tea.test"), await server(store, "cake.test")
    async with store.database.connection() as tx:
        nothing = await sent_positions.load(tx)
        await sent_positions.save(tx, 5, {tea.nid: 3, cake.nid: 4}, [])
        first = await sent_positions.load(tx)
        await sent_positions.save(tx, 9, {tea.nid: 8}, [cake.nid])
        second = await sent_positions.load(tx)

    assert nothing == SentPositions(0, {})
    assert first == SentPositions(5, {tea: 3, cake: 4})
    assert second == SentPositions(9, {tea: 8})
