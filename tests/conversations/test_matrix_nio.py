"""A story told with matrix-nio, a client that was not written with this server in mind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nio
import pytest

from storage.database import Database
from tests.servers import RunningServer, running_server, unique_name

PASSWORD = "tea for two"


@pytest.fixture(scope="module")
async def server(database: Database, database_url: str) -> AsyncIterator[RunningServer]:
    async with running_server(database_url) as server:
        yield server


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


async def heard(user: nio.AsyncClient, text: str) -> nio.RoomMessageText:
    """Sync until a text message comes."""
    for _ in range(20):
        answer = await user.sync(timeout=5_000)
        assert isinstance(answer, nio.SyncResponse), answer
        for room in answer.rooms.join.values():
            for event in room.timeline.events:
                if isinstance(event, nio.RoomMessageText) and event.body == text:
                    return event
    raise AssertionError(f"{text!r} did not come")


async def test_alice_invites_bob_and_they_talk(server: RunningServer) -> None:
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        created = await alice.room_create(
            name="Tea", topic="Leaves", invite=[bob.user_id], is_direct=True, federate=False
        )
        assert isinstance(created, nio.RoomCreateResponse), created
        room_id = created.room_id

        await bob.sync()
        assert bob.invited_rooms[room_id].inviter == alice.user_id
        assert isinstance(await bob.join(room_id), nio.JoinResponse)
        await bob.sync()
        assert bob.rooms[room_id].name == "Tea"
        assert set(bob.rooms[room_id].users) == {alice.user_id, bob.user_id}

        sent = await alice.room_send(room_id, "m.room.message", {"msgtype": "m.text", "body": "Milk?"})
        assert isinstance(sent, nio.RoomSendResponse), sent
        question = await heard(bob, "Milk?")
        assert (question.event_id, question.sender) == (sent.event_id, alice.user_id)

        await bob.room_send(room_id, "m.room.message", {"msgtype": "m.text", "body": "Lemon."})
        answer = await heard(alice, "Lemon.")

        history = await alice.room_messages(room_id, alice.next_batch, limit=50)
        assert isinstance(history, nio.RoomMessagesResponse), history
        texts = [event.body for event in history.chunk if isinstance(event, nio.RoomMessageText)]
        assert texts == ["Lemon.", "Milk?"]

        context = await alice.room_context(room_id, answer.event_id, limit=4)
        assert isinstance(context, nio.RoomContextResponse), context
        assert context.events_before[0].event_id == question.event_id

        redacted = await bob.room_redact(room_id, answer.event_id, reason="no lemons left")
        assert isinstance(redacted, nio.RoomRedactResponse), redacted
        again = await alice.room_get_event(room_id, answer.event_id)
        assert isinstance(again, nio.RoomGetEventResponse), again
        assert isinstance(again.event, nio.RedactedEvent)

        members = await alice.joined_members(room_id)
        assert isinstance(members, nio.JoinedMembersResponse), members
        assert {member.user_id for member in members.members} == {alice.user_id, bob.user_id}

        state = await alice.room_get_state_event(room_id, "m.room.topic")
        assert isinstance(state, nio.RoomGetStateEventResponse), state
        assert state.content["topic"] == "Leaves"

        assert isinstance(await alice.room_kick(room_id, bob.user_id, "bedtime"), nio.RoomKickResponse)
        after = await bob.sync()
        assert isinstance(after, nio.SyncResponse), after
        assert list(after.rooms.leave) == [room_id]
        assert isinstance(await bob.room_forget(room_id), nio.RoomForgetResponse)


async def test_names_and_rooms_are_found_by_others(server: RunningServer) -> None:
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        assert isinstance(await alice.set_displayname("Alice"), nio.ProfileSetDisplayNameResponse)
        alias = unique_name("tea")
        created = await alice.room_create(
            visibility=nio.RoomVisibility.public, alias=alias, preset=nio.RoomPreset.public_chat
        )
        assert isinstance(created, nio.RoomCreateResponse), created

        found = await bob.room_resolve_alias(f"#{alias}:test")
        assert isinstance(found, nio.RoomResolveAliasResponse), found
        assert found.room_id == created.room_id
        assert isinstance(await bob.join(f"#{alias}:test"), nio.JoinResponse)
        await bob.sync()
        assert bob.rooms[created.room_id].user_name(alice.user_id) == "Alice"

        assert isinstance(await alice.set_displayname("Alice the Great"), nio.ProfileSetDisplayNameResponse)
        await bob.sync()
        assert bob.rooms[created.room_id].user_name(alice.user_id) == "Alice the Great"


async def test_bob_follows_alice_into_the_room_that_replaces_theirs(server: RunningServer) -> None:
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        created = await alice.room_create(name="Tea", preset=nio.RoomPreset.public_chat)
        assert isinstance(created, nio.RoomCreateResponse), created
        assert isinstance(await bob.join(created.room_id), nio.JoinResponse)
        await bob.sync()

        upgraded = await server.nobody.with_token(alice.access_token).post(
            f"/_matrix/client/v3/rooms/{created.room_id}/upgrade", {"new_version": "11"}
        )
        news = await bob.sync()
        assert isinstance(news, nio.SyncResponse), news
        [tombstone] = [
            event
            for event in news.rooms.join[created.room_id].timeline.events
            if isinstance(event, nio.RoomUpgradeEvent)
        ]
        assert tombstone.replacement_room == upgraded.body["replacement_room"]

        assert isinstance(await bob.join(tombstone.replacement_room), nio.JoinResponse)
        await bob.sync()
        assert bob.rooms[tombstone.replacement_room].name == "Tea"
        assert bob.rooms[tombstone.replacement_room].room_version == "11"
        assert set(bob.rooms[tombstone.replacement_room].users) == {alice.user_id, bob.user_id}


async def test_a_client_replaces_a_room_without_asking_the_server_to(server: RunningServer) -> None:
    async with client(server, "alice") as alice:
        created = await alice.room_create(
            name="Tea", topic="Leaves", alias=unique_name("tea"), room_version="11"
        )
        assert isinstance(created, nio.RoomCreateResponse), created
        await alice.sync()

        upgraded = await alice.room_upgrade(created.room_id, "11")
        assert isinstance(upgraded, nio.responses.RoomUpgradeResponse), upgraded
        await alice.sync()
        state = await alice.room_get_state_event(created.room_id, "m.room.tombstone")
        assert isinstance(state, nio.RoomGetStateEventResponse), state
        assert state.content["replacement_room"] == upgraded.room_id
        assert alice.rooms[upgraded.room_id].topic == "Leaves"


async def test_logging_in_again_is_another_device_and_logging_out_ends_it(server: RunningServer) -> None:
    async with client(server, "alice") as alice:
        second = nio.AsyncClient(server.url, alice.user_id)
        try:
            logged_in = await second.login(PASSWORD, "second")
            assert isinstance(logged_in, nio.LoginResponse), logged_in
            assert logged_in.device_id != alice.device_id
            whoami = await second.whoami()
            assert isinstance(whoami, nio.WhoamiResponse), whoami
            assert whoami.user_id == alice.user_id
            assert isinstance(await second.logout(), nio.LogoutResponse)
            refused = await alice.sync()
            assert isinstance(refused, nio.SyncResponse)
        finally:
            await second.close()
