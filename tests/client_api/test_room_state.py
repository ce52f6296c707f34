"""/state, /members, /joined_members and /joined_rooms."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.client_api.rooms import join, new_room, room_path, set_state
from tests.clients import Client
from tests.servers import RunningServer, unique_name


async def state(client: Client, room_id: str) -> dict[tuple[str, str], dict[str, Any]]:
    answer = await client.get(room_path(room_id, "state"))
    assert answer.status == 200, answer.body
    found = {(event["type"], event["state_key"]): event for event in answer.body}
    assert len(found) == len(answer.body)
    return found


async def members(client: Client, room_id: str, **query: str) -> dict[str, str]:
    answer = await client.get(room_path(room_id, "members"), query)
    assert answer.status == 200, answer.body
    assert all(event["room_id"] == room_id for event in answer.body["chunk"])
    return {event["state_key"]: event["content"]["membership"] for event in answer.body["chunk"]}


async def test_a_member_reads_the_newest_state(alice: Client) -> None:
    room_id = await new_room(alice, name="Tea")
    await set_state(alice, room_id, "m.room.name", {"name": "Coffee"})
    await set_state(alice, room_id, "org.example.thing", {"a": 1}, "key/with space")

    found = await state(alice, room_id)

    assert found["m.room.name", ""]["content"] == {"name": "Coffee"}
    assert found["org.example.thing", "key/with space"]["content"] == {"a": 1}
    assert found["m.room.member", alice.user_id]["content"]["membership"] == "join"
    assert {event["room_id"] for event in found.values()} == {room_id}


async def test_a_piece_of_state_is_content_or_the_whole_event(alice: Client) -> None:
    room_id = await new_room(alice)
    event_id = await set_state(alice, room_id, "m.room.name", {"name": "Tea"})
    path = room_path(room_id, "state", "m.room.name")
    for variant in (path, f"{path}/"):
        assert (await alice.get(variant)).body == {"name": "Tea"}
    whole = (await alice.get(path, {"format": "event"})).body
    assert (whole["event_id"], whole["room_id"], whole["content"]) == (event_id, room_id, {"name": "Tea"})
    assert (whole["type"], whole["state_key"], whole["sender"]) == ("m.room.name", "", alice.user_id)
    assert (await alice.get(path, {"format": "xml"})).error == (400, "M_INVALID_PARAM")


async def test_a_piece_of_state_that_is_not_there_is_not_found(alice: Client) -> None:
    room_id = await new_room(alice)
    for event_type, state_key in (
        ("m.room.topic", ""),
        ("m.room.create", "x"),
        (f"org.example.{unique_name()}", ""),
        ("m.room.member", "@nobody:test"),
    ):
        answer = await alice.get(room_path(room_id, "state", event_type, state_key))
        assert answer.error == (404, "M_NOT_FOUND")


async def test_who_left_reads_the_state_as_it_was_then(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice, name="before")
    await join(bob, room_id)
    await bob.in_room("POST", room_id, "leave")
    await set_state(alice, room_id, "m.room.name", {"name": "after"})
    await set_state(alice, room_id, "m.room.topic", {"topic": "new"})

    found = await state(bob, room_id)

    assert found["m.room.name", ""]["content"] == {"name": "before"}
    assert found["m.room.member", bob.user_id]["content"]["membership"] == "leave"
    assert (await bob.get(room_path(room_id, "state", "m.room.name"))).body == {"name": "before"}
    assert (await bob.get(room_path(room_id, "state", "m.room.topic"))).error == (404, "M_NOT_FOUND")


async def test_an_invite_after_leaving_does_not_open_the_newest_state(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice, name="before")
    await join(bob, room_id)
    await bob.in_room("POST", room_id, "leave")
    await set_state(alice, room_id, "m.room.name", {"name": "after"})
    await alice.in_room("POST", room_id, "invite", {"user_id": bob.user_id})
    assert (await state(bob, room_id))["m.room.name", ""]["content"] == {"name": "before"}


async def test_who_was_never_in_the_room_reads_no_state(
    alice: Client, bob: Client, server: RunningServer
) -> None:
    carol = await server.nobody.register(unique_name("carol"))
    room_id = await new_room(alice)
    await alice.in_room("POST", room_id, "invite", {"user_id": carol.user_id})
    for client, room in ((bob, room_id), (carol, room_id), (alice, "!unknown:test")):
        for what in (("state",), ("state", "m.room.create"), ("members",), ("joined_members",)):
            assert (await client.get(room_path(room, *what))).error == (403, "M_FORBIDDEN")
    await carol.in_room("POST", room_id, "leave")
    assert (await carol.get(room_path(room_id, "state"))).error == (403, "M_FORBIDDEN")


async def test_anyone_with_a_token_reads_a_world_readable_room(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice, name="Tea")
    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    assert (await state(bob, room_id))["m.room.name", ""]["content"] == {"name": "Tea"}
    assert await members(bob, room_id) == {alice.user_id: "join"}
    assert (await bob.get(room_path(room_id, "joined_members"))).error == (403, "M_FORBIDDEN")

    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "shared"})
    assert (await bob.get(room_path(room_id, "state"))).error == (403, "M_FORBIDDEN")


async def test_redacted_state_is_pruned(alice: Client) -> None:
    room_id = await new_room(alice)
    event_id = await set_state(alice, room_id, "m.room.topic", {"topic": "secret"})
    await alice.in_room("PUT", room_id, f"redact/{event_id}/1", {})
    assert (await alice.get(room_path(room_id, "state", "m.room.topic"))).body == {}
    assert (await state(alice, room_id))["m.room.topic", ""]["content"] == {}


async def test_members_are_chosen_by_membership(alice: Client, server: RunningServer) -> None:
    everyone = {alice.user_id: "join"}
    room_id = await new_room(alice)
    for way in ("join", "leave", "invite", "ban"):
        user = await server.nobody.register(unique_name(way))
        if way == "invite":
            await alice.in_room("POST", room_id, "invite", {"user_id": user.user_id})
        else:
            await join(user, room_id)
        if way == "leave":
            await user.in_room("POST", room_id, "leave")
        if way == "ban":
            await alice.in_room("POST", room_id, "ban", {"user_id": user.user_id})
        everyone[user.user_id] = way

    def chosen(*memberships: str) -> dict[str, str]:
        return {user_id: way for user_id, way in everyone.items() if way in memberships}

    assert await members(alice, room_id) == everyone
    for membership in ("join", "leave", "invite", "ban", "knock"):
        assert await members(alice, room_id, membership=membership) == chosen(membership)
    assert await members(alice, room_id, not_membership="join") == chosen("leave", "invite", "ban")
    both = await members(alice, room_id, membership="join", not_membership="ban")
    assert both == chosen("join", "leave", "invite")
    answer = await alice.get(room_path(room_id, "members"), {"membership": "admin"})
    assert answer.error == (400, "M_INVALID_PARAM")


async def test_members_at_a_token_are_those_of_that_time(
    alice: Client, bob: Client, server: RunningServer
) -> None:
    carol = await server.nobody.register(unique_name("carol"))
    room_id = await new_room(alice)
    await join(bob, room_id)
    synced = await alice.sync()
    await join(carol, room_id)
    await bob.in_room("POST", room_id, "leave")
    page = (await alice.get(room_path(room_id, "messages"), {"dir": "b", "limit": "1"})).body

    then = {alice.user_id: "join", bob.user_id: "join"}
    assert await members(alice, room_id, at=synced["next_batch"]) == then
    assert await members(alice, room_id, at=page["end"]) == {**then, carol.user_id: "join"}
    assert await members(alice, room_id, at=page["end"], membership="leave") == {}
    assert await members(alice, room_id, at=page["start"], not_membership="join") == {bob.user_id: "leave"}
    assert (await alice.get(room_path(room_id, "members"), {"at": "x"})).error == (400, "M_INVALID_PARAM")


async def test_before_its_first_event_a_room_has_the_members_it_begins_with(
    alice: Client, bob: Client
) -> None:
    room_id = await new_room(alice)
    timeline = (await alice.sync())["rooms"]["join"][room_id]["timeline"]
    await join(bob, room_id)
    assert timeline["events"][0]["type"] == "m.room.create"
    assert await members(alice, room_id, at=timeline["prev_batch"]) == {alice.user_id: "join"}


async def test_who_left_reads_the_members_of_then_whatever_the_token(
    alice: Client, bob: Client, server: RunningServer
) -> None:
    carol = await server.nobody.register(unique_name("carol"))
    room_id = await new_room(alice)
    await join(bob, room_id)
    await bob.in_room("POST", room_id, "leave")
    await join(carol, room_id)
    later = (await alice.sync())["next_batch"]
    expected = {alice.user_id: "join", bob.user_id: "leave"}
    for query in ({}, {"at": later}):
        assert await members(bob, room_id, **query) == expected
    assert await members(bob, room_id, membership="join") == {alice.user_id: "join"}


async def test_members_of_a_time_that_one_may_not_see_are_refused(alice: Client, bob: Client) -> None:
    hidden = {"history_visibility": "joined"}
    visibility = [{"type": "m.room.history_visibility", "state_key": "", "content": hidden}]
    room_id = await new_room(alice, initial_state=visibility)
    before = (await alice.sync())["next_batch"]
    await join(bob, room_id)
    answer = await bob.get(room_path(room_id, "members"), {"at": before})
    assert answer.error == (403, "M_FORBIDDEN")
    assert await members(alice, room_id, at=before) == {alice.user_id: "join"}


async def test_joined_members_shows_profiles_to_members_only(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)
    odd = {"membership": "join", "displayname": ["no", "text"], "avatar_url": "mxc://test/bob"}
    await set_state(bob, room_id, "m.room.member", odd, bob.user_id)
    path = room_path(room_id, "joined_members")

    joined = (await alice.get(path)).body["joined"]

    assert set(joined) == {alice.user_id, bob.user_id}
    assert set(joined[alice.user_id]) == {"display_name", "avatar_url"}
    assert joined[bob.user_id] == {"display_name": None, "avatar_url": "mxc://test/bob"}

    await bob.in_room("POST", room_id, "leave")
    assert (await bob.get(path)).error == (403, "M_FORBIDDEN")
    assert set((await alice.get(path)).body["joined"]) == {alice.user_id}


async def test_joined_rooms_lists_the_rooms_that_one_is_in(alice: Client, bob: Client) -> None:
    stays, leaves, invited = [await new_room(alice) for _ in range(3)]
    await join(bob, stays)
    await join(bob, leaves)
    await bob.in_room("POST", leaves, "leave")
    await alice.in_room("POST", invited, "invite", {"user_id": bob.user_id})
    assert (await bob.get("/_matrix/client/v3/joined_rooms")).body == {"joined_rooms": [stays]}
    assert (await bob.with_token(None).get("/_matrix/client/v3/joined_rooms")).status == 401


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_state_is_only_read_and_put(alice: Client, method: str) -> None:
    room_id = await new_room(alice)
    answer = await alice.send(method, room_path(room_id, "state", "m.room.name"), {})
    assert answer.error == (405, "M_UNRECOGNIZED")


async def test_many_readers_at_once_do_not_wait_for_each_others_connections(alice: Client) -> None:
    room_id = await new_room(alice)
    unknown = [room_path(room_id, "state", f"org.example.{unique_name()}") for _ in range(30)]
    paths = [*unknown, *([room_path(room_id, "state"), room_path(room_id, "members")] * 15)]
    async with asyncio.timeout(20):  # less than the time that a request waits for a connection
        answers = await asyncio.gather(*(alice.get(path) for path in paths))
    assert [answer.status for answer in answers] == [404] * 30 + [200] * 30
