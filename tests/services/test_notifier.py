"""Waking those who wait, whatever happens while a user is loaded or dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from homeserver.services import notifier as notifier_module
from homeserver.services.notifier import Notifier
from storage import memberships
from storage.database import Database, Transaction
from storage.memberships import Membership, MembershipRow
from tests.storage.oob_events import member_event, new_room_id, save
from tests.storage.stores import Store, open_store

SOON_S = 5.0


@pytest.fixture
async def store(database: Database, database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as store:
        yield store


@pytest.fixture
def notifier(store: Store) -> Notifier:
    notifier = Notifier(store.database, store.stream)
    store.stream.listen(notifier.listen)
    store.stream.listen_memberships(notifier.listen_memberships)
    return notifier


@dataclass
class SlowLoading:
    """The next loading of a user stops before or after its query, and something happens meanwhile."""

    monkeypatch: pytest.MonkeyPatch

    def meanwhile(self, act: Callable[[], Awaitable[object]], *, before: bool) -> None:
        read = memberships.of_user

        async def of_user(tx: Transaction, user_nid: int) -> list[MembershipRow]:
            self.monkeypatch.setattr(memberships, "of_user", read)
            if before:
                await act()
            rows = await read(tx, user_nid)
            if not before:
                await act()
            return rows

        self.monkeypatch.setattr(memberships, "of_user", of_user)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowLoading:
    return SlowLoading(monkeypatch)


@pytest.mark.parametrize("before", [True, False])
async def test_what_is_said_while_a_user_is_loaded_is_news(
    store: Store, notifier: Notifier, slow: SlowLoading, before: bool
) -> None:
    alice = await store.user("alice")
    room_id = await store.room(alice)
    since = store.stream.position
    slow.meanwhile(lambda: store.send(alice, room_id, "hello"), before=before)
    user = await notifier.follow(alice.user_id, alice.user_nid)
    assert user.news > since


@pytest.mark.parametrize("before", [True, False])
async def test_an_invite_out_of_band_while_a_user_is_loaded_is_known(
    store: Store, notifier: Notifier, slow: SlowLoading, before: bool
) -> None:
    bob, room_id = await store.user("bob"), new_room_id()
    since = store.stream.position

    async def invite() -> None:
        await save(store, member_event(room_id, bob.user_id, "invite"))
        await store.stream.catch_up()

    slow.meanwhile(invite, before=before)
    user = await notifier.follow(bob.user_id, bob.user_nid)

    [user_room] = user.outside_after(since)
    assert (user_room.room.room_id, user_room.membership) == (room_id, Membership.INVITE)
    assert user_room.out_of_band and user.rooms == {user_room.room.nid: user_room}
    assert user.outside_after(user_room.pos) == []


async def test_who_waits_is_woken_by_an_invite_out_of_band(store: Store, notifier: Notifier) -> None:
    bob, rooms = await store.user("bob"), [new_room_id(), new_room_id()]
    await save(store, member_event(rooms[0], bob.user_id, "invite"))
    await store.stream.catch_up()
    user = await notifier.follow(bob.user_id, bob.user_nid)
    since = store.stream.position

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(notifier.wait(user, since, SOON_S))
        await save(store, member_event(rooms[1], bob.user_id, "invite"))
        await store.stream.catch_up()

    assert waiting.result()
    assert [user_room.room.room_id for user_room in user.outside_after(since)] == [rooms[1]]
    # Of each room the newest change counts, and the newest room comes first.
    await save(store, member_event(rooms[0], bob.user_id, "invite"))
    await store.stream.catch_up()
    assert [user_room.room.room_id for user_room in user.outside_after(0)] == rooms


@pytest.mark.parametrize("before", [True, False])
async def test_an_invite_while_a_user_is_loaded_is_known(
    store: Store, notifier: Notifier, slow: SlowLoading, before: bool
) -> None:
    alice, bob = await store.user("alice"), await store.user("bob")
    room_id = await store.room(alice)
    since = store.stream.position
    slow.meanwhile(lambda: store.room_membership.invite(alice, room_id, bob.user_id, {}), before=before)
    user = await notifier.follow(bob.user_id, bob.user_nid)
    assert [room.membership for room in user.rooms.values()] == [Membership.INVITE]
    assert user.news > since


async def test_a_user_is_never_ahead_of_the_stream(database_url: str, store: Store) -> None:
    alice, bob = await store.user("alice"), await store.user("bob")
    async with open_store(database_url) as other_process:
        notifier = Notifier(other_process.database, other_process.stream)
        other_process.stream.listen(notifier.listen)
        since = other_process.stream.position
        room_id = await store.room(alice)
        await store.room_membership.invite(alice, room_id, bob.user_id, {})
        user = await notifier.follow(bob.user_id, bob.user_nid)
        [room] = user.rooms.values()
        assert since < room.pos <= other_process.stream.position
        assert user.news > since


async def test_a_room_that_is_forgotten_while_a_user_is_loaded_is_forgotten(
    store: Store, notifier: Notifier, slow: SlowLoading
) -> None:
    alice = await store.user("alice")
    room_id = await store.room(alice)
    await store.room_membership.leave(alice, room_id, {})

    async def forget() -> None:
        async with store.database.connection() as tx:
            assert await memberships.forget(tx, alice.user_nid, room_id)
        notifier.forgotten(alice.user_id, room_id)

    slow.meanwhile(forget, before=False)
    user = await notifier.follow(alice.user_id, alice.user_nid)
    assert [room.forgotten for room in user.rooms.values()] == [True]


async def test_a_user_whom_a_request_follows_is_not_dropped(
    store: Store, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier_module, "MAX_USER_ROOMS", 1)
    alice, bob, carol = [await store.user(name) for name in ("alice", "bob", "carol")]
    room_id = await store.room(alice)
    await store.room_membership.join(bob, room_id, {})
    followed = await notifier.follow(bob.user_id, bob.user_nid)
    for user in (alice, carol, alice, carol):
        notifier.unfollow(await notifier.follow(user.user_id, user.user_nid))
    assert notifier.users == 2

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(notifier.wait(followed, store.stream.position, SOON_S))
        await store.send(alice, room_id, "hello bob")
    assert waiting.result() is True
    notifier.unfollow(followed)
    notifier.unfollow(await notifier.follow(alice.user_id, alice.user_nid))
    assert notifier.users == 1


async def test_a_room_of_a_version_that_is_not_supported_is_left_out(
    store: Store, notifier: Notifier
) -> None:
    alice = await store.user("alice")
    old, new = await store.room(alice), await store.room(alice)
    change_version = "UPDATE rooms SET version = $2 WHERE room_id = $1"
    async with store.database.connection() as tx:
        await tx.execute(change_version, old, "org.example.gone")
        try:
            user = await notifier.follow(alice.user_id, alice.user_nid)
        finally:
            await tx.execute(change_version, old, "12")
    assert [room.room.room_id for room in user.rooms.values()] == [new]


async def test_who_waits_while_the_server_stops_is_let_go(store: Store, notifier: Notifier) -> None:
    alice = await store.user("alice")
    user = await notifier.follow(alice.user_id, alice.user_nid)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(notifier.wait(user, store.stream.position, SOON_S))
        await asyncio.sleep(0)
        assert notifier.waiting == 1
        notifier.close()
    assert waiting.result() is False
    assert notifier.waiting == 0
    assert await notifier.wait(user, store.stream.position, SOON_S) is False
