"""What is stored of users in rooms that this server is not in, and what the stream tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from homeserver.protocol.identifiers import RoomId
from homeserver.services.access_tokens import Requester
from storage import memberships, oob_memberships
from storage.database import Database
from storage.memberships import Membership
from storage.oob_memberships import Standing
from storage.stream import StreamEvent, StreamMembership
from tests.storage.oob_events import member_event, new_room_id, save
from tests.storage.stores import SERVER, Store, open_store


@pytest.fixture
async def store(database: Database, database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as store:
        yield store


@pytest.fixture
async def other(database: Database, database_url: str) -> AsyncIterator[Store]:
    """Another process."""
    async with open_store(database_url) as store:
        yield store


async def standing_of(store: Store, user: Requester, room_id: RoomId) -> Standing | None:
    server_nid = await store.dictionaries.atoms.nid(SERVER)
    async with store.database.connection() as tx:
        return await oob_memberships.standing(tx, room_id, user.user_nid, server_nid)


async def test_the_same_event_is_stored_once(store: Store, other: Store) -> None:
    bob, room_id = await store.user("bob"), new_room_id()
    invite = member_event(room_id, bob.user_id, "invite")

    stored = await asyncio.gather(*(save(one, invite) for one in (store, other) * 5))

    assert sorted(stored) == [False] * 9 + [True]
    async with store.database.connection() as tx:
        rows = await tx.fetch(
            """
            SELECT kind, stream.user_nid, oob.event_nid, room_seq, stream.pos = oob.pos AS same FROM stream
            JOIN oob_membership AS oob USING (room_nid) JOIN rooms ON rooms.nid = room_nid WHERE room_id = $1
            """,
            room_id,
        )
    assert [(row["kind"], row["user_nid"], row["room_seq"], row["same"]) for row in rows] == [
        (6, bob.user_nid, None, True)
    ]


async def test_only_what_is_expected_is_replaced(store: Store) -> None:
    bob, room_id = await store.user("bob"), new_room_id()
    await save(store, member_event(room_id, bob.user_id, "invite"))
    first = await standing_of(store, bob, room_id)
    assert first is not None and first.event_nid is not None
    await save(store, member_event(room_id, bob.user_id, "invite"))

    assert not await save(store, member_event(room_id, bob.user_id, "leave"), expected=first.event_nid)
    second = await standing_of(store, bob, room_id)
    assert second is not None and second.membership is Membership.INVITE
    assert await save(store, member_event(room_id, bob.user_id, "leave"), expected=second.event_nid)
    third = await standing_of(store, bob, room_id)
    assert third is not None and third.membership is Membership.LEAVE
    assert third.out_of_band and not third.is_ours


async def test_where_a_user_of_ours_is_in_the_room_an_invite_changes_nothing(store: Store) -> None:
    alice, bob = await store.user("alice"), await store.user("bob")
    room_id = await store.room(alice, room_version="11")

    assert not await save(store, member_event(room_id, bob.user_id, "invite"))
    inside = await standing_of(store, bob, room_id)
    assert inside is not None and inside.is_ours and inside.membership is None

    await store.room_membership.leave(alice, room_id, {})
    empty = await standing_of(store, bob, room_id)
    assert empty is not None and empty.is_ours and not empty.is_resident
    assert await save(store, member_event(room_id, bob.user_id, "invite"))
    invited = await standing_of(store, bob, room_id)
    assert invited is not None and not invited.is_ours


async def test_of_what_is_known_of_a_user_the_newest_counts(store: Store) -> None:
    alice, bob = await store.user("alice"), await store.user("bob")
    room_id = await store.room(alice, room_version="11")
    await store.room_membership.join(bob, room_id, {})
    for user in (bob, alice):
        await store.room_membership.leave(user, room_id, {})

    async def rooms_of(membership: Membership) -> list[RoomId]:
        async with store.database.connection() as tx:
            return await memberships.rooms_of(tx, bob.user_nid, membership)

    async def forget() -> bool:
        async with store.database.connection() as tx:
            return await memberships.forget(tx, bob.user_nid, room_id)

    assert await rooms_of(Membership.LEAVE) == [room_id]
    await save(store, member_event(room_id, bob.user_id, "invite"))
    assert (await rooms_of(Membership.INVITE), await rooms_of(Membership.LEAVE)) == ([room_id], [])
    assert not await forget()
    invited = await standing_of(store, bob, room_id)
    assert invited is not None
    await save(store, member_event(room_id, bob.user_id, "leave"), expected=invited.event_nid)
    assert await forget()
    async with store.database.connection() as tx:
        [row] = await memberships.of_user(tx, bob.user_nid)
    assert (row.membership, row.out_of_band, row.forgotten) == (Membership.LEAVE, True, True)


async def test_the_stream_tells_of_memberships_and_events_in_their_order(store: Store, other: Store) -> None:
    told: dict[str, list[int]] = {"here": [], "there": []}

    def listen(name: str, one: Store) -> None:
        def take(events: list[StreamEvent]) -> None:
            told[name].extend(event.pos for event in events)

        def take_membership(change: StreamMembership) -> None:
            told[name].append(change.pos)

        one.stream.listen(take)  # type: ignore[arg-type]
        one.stream.listen_memberships(take_membership)

    await other.stream.catch_up()
    await store.stream.catch_up()
    listen("here", store)
    listen("there", other)
    start = store.stream.position
    alice, bob = await store.user("alice"), await store.user("bob")
    room_id = await store.room(alice)
    for _ in range(3):
        await store.send(alice, room_id, "tea")
        await save(store, member_event(new_room_id(), bob.user_id, "invite"))
        await save(other, member_event(new_room_id(), bob.user_id, "invite"))
    await store.send(alice, room_id, "tea")
    await other.stream.catch_up()

    for positions in told.values():
        assert positions == sorted(positions)
        assert positions == list(range(start + 1, positions[-1] + 1))
    assert told["here"] == told["there"]
    assert store.stream.position == other.stream.position


async def test_a_membership_in_a_room_of_an_unknown_version_is_passed_over(
    store: Store, other: Store
) -> None:
    told: list[StreamMembership] = []
    other.stream.listen_memberships(told.append)
    bob, rooms = await store.user("bob"), [new_room_id(), new_room_id()]
    invites = [member_event(room_id, bob.user_id, "invite") for room_id in rooms]
    for invite in invites:
        await save(store, invite)
    async with store.database.connection() as tx:
        query = "UPDATE rooms SET version = 'org.example.tea' WHERE room_id = $1 RETURNING nid"
        nid = await tx.fetchval(query, rooms[0])
        await tx.execute("UPDATE oob_membership SET version = 'org.example.tea' WHERE room_nid = $1", nid)

    await other.stream.catch_up()

    assert [(change.room.room_id, change.user_id) for change in told] == [(rooms[1], bob.user_id)]
    assert await standing_of(other, bob, rooms[0]) is None
    # The next one who invites says better what the version is.
    assert await save(store, member_event(rooms[0], bob.user_id, "invite"))
    assert await standing_of(other, bob, rooms[0]) is not None
