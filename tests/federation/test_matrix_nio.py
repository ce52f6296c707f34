"""Two people who use matrix-nio, each on a server of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import nio

from tests.federation.homeservers import name_of
from tests.servers import RunningServer, unique_name

PASSWORD = "tea for two"


@asynccontextmanager
async def client(server: RunningServer, name: str) -> AsyncIterator[nio.AsyncClient]:
    """A registered user's client that has synced once."""
    user = nio.AsyncClient(server.url, unique_name(name), config=nio.AsyncClientConfig(max_timeouts=1))
    try:
        registered = await user.register(user.user, PASSWORD, "nio")
        assert isinstance(registered, nio.RegisterResponse), registered
        assert isinstance(await user.sync(), nio.SyncResponse)
        yield user
    finally:
        await user.close()


async def until(user: nio.AsyncClient, condition: Callable[[], bool], limit_s: float = 30) -> None:
    """Sync until something is true of what the client knows."""
    async with asyncio.timeout(limit_s):
        while not condition():
            assert isinstance(await user.sync(timeout=500), nio.SyncResponse)


async def until_heard(user: nio.AsyncClient, room_id: str, text: str) -> None:
    """Sync until a text message comes."""
    async with asyncio.timeout(30):
        while True:
            answer = await user.sync(timeout=500)
            assert isinstance(answer, nio.SyncResponse), answer
            room = answer.rooms.join.get(room_id)
            if room is not None and any(
                isinstance(event, nio.RoomMessageText) and event.body == text
                for event in room.timeline.events
            ):
                return


async def say(user: nio.AsyncClient, room_id: str, text: str) -> str:
    sent = await user.room_send(room_id, "m.room.message", {"msgtype": "m.text", "body": text})
    assert isinstance(sent, nio.RoomSendResponse), sent
    return str(sent.event_id)


async def test_alice_invites_bob_who_is_elsewhere(here: RunningServer, there: RunningServer) -> None:
    async with client(here, "alice") as alice, client(there, "bob") as bob:
        assert isinstance(await bob.set_displayname("Bob"), nio.ProfileSetDisplayNameResponse)
        created = await alice.room_create(name="Tea", topic="Leaves", invite=[bob.user_id], is_direct=True)
        assert isinstance(created, nio.RoomCreateResponse), created
        room_id = created.room_id

        await until(bob, lambda: room_id in bob.invited_rooms)
        assert bob.invited_rooms[room_id].inviter == alice.user_id
        assert isinstance(await bob.join(room_id), nio.JoinResponse)
        await until(bob, lambda: room_id in bob.rooms)
        assert bob.rooms[room_id].name == "Tea"
        assert set(bob.rooms[room_id].users) == {alice.user_id, bob.user_id}

        await say(bob, room_id, "Milk?")
        await until_heard(alice, room_id, "Milk?")
        lemon = await say(alice, room_id, "Lemon.")
        await until_heard(bob, room_id, "Lemon.")
        assert alice.rooms[room_id].user_name(bob.user_id) == "Bob"

        redacted = await alice.room_redact(room_id, lemon, reason="no lemons left")
        assert isinstance(redacted, nio.RoomRedactResponse), redacted
        await say(alice, room_id, "Sorry.")
        await until_heard(bob, room_id, "Sorry.")
        again = await bob.room_get_event(room_id, lemon)
        assert isinstance(again, nio.RoomGetEventResponse), again
        assert isinstance(again.event, nio.RedactedEvent)

        assert isinstance(await bob.room_leave(room_id), nio.RoomLeaveResponse)
        await until(alice, lambda: bob.user_id not in alice.rooms[room_id].users)


async def test_bob_finds_a_room_of_another_server_by_its_alias(
    here: RunningServer, there: RunningServer
) -> None:
    async with client(here, "alice") as alice, client(there, "bob") as bob:
        name = unique_name("tea")
        created = await alice.room_create(alias=name, preset=nio.RoomPreset.public_chat)
        assert isinstance(created, nio.RoomCreateResponse), created
        joined = await bob.join(f"#{name}:{name_of(here)}")
        assert isinstance(joined, nio.JoinResponse), joined
        await say(bob, created.room_id, "found it")
        await until_heard(alice, created.room_id, "found it")
