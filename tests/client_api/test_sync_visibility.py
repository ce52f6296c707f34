"""Client-Server API, "Syncing": who is shown what of a room, by membership and history visibility."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client_api.test_sync import bodies, joined, types
from tests.clients import Client


def left(answer: Any, room_id: str) -> Any:
    return answer["rooms"]["leave"][room_id]


async def set_visibility(client: Client, room_id: str, visibility: str) -> None:
    await client.set_state(room_id, "m.room.history_visibility", {"history_visibility": visibility})


async def member(client: Client, room_id: str, user: Client, membership: str) -> None:
    await client.set_state(room_id, "m.room.member", {"membership": membership}, user.user_id)


@pytest.mark.parametrize("visibility", ["joined", "invited"])
async def test_who_joins_where_history_is_hidden_still_gets_the_state(
    alice: Client, bob: Client, visibility: str
) -> None:
    room_id = await alice.create_room(name="Tea")
    await set_visibility(alice, room_id, visibility)
    await alice.set_state(room_id, "m.room.topic", {"topic": "before bob"})
    for number in range(9):
        await alice.say(room_id, str(number))
    token = (await bob.sync())["next_batch"]
    await bob.join(room_id)

    for answer in (await bob.sync(token), await bob.sync()):
        room = joined(answer, room_id)
        assert bodies(room) == []
        assert room["timeline"]["events"][-1]["state_key"] == bob.user_id
        assert types(room["timeline"]["events"]).count("m.room.topic") == 0
        assert types(room["state"]["events"]) == ["m.room.topic"]


@pytest.mark.invariant("SEC-VIS-2")
async def test_sec_vis_2_who_knocks_sees_stripped_state_and_nothing_else(alice: Client, bob: Client) -> None:
    room_id = await alice.create_room(name="Tea", preset="private_chat", topic="Stripped, too")
    await alice.set_state(room_id, "m.room.join_rules", {"join_rule": "knock"})
    await alice.set_state(room_id, "org.example.secret", {"secret": "cake"})
    await alice.say(room_id, "secret cake")
    token = (await bob.sync())["next_batch"]
    await member(bob, room_id, bob, "knock")

    for answer in (await bob.sync(token), await bob.sync(), await bob.sync(token, full_state=True)):
        assert list(answer["rooms"]) == ["knock"]
        assert list(answer["rooms"]["knock"][room_id]) == ["knock_state"]
        events = answer["rooms"]["knock"][room_id]["knock_state"]["events"]
        assert {"m.room.create", "m.room.name", "m.room.member"} <= set(types(events))
        stripped = {"type", "state_key", "sender", "content"}
        assert all(set(event) - {"origin_server_ts"} == stripped for event in events)
        assert "secret" not in str(answer)


@pytest.mark.invariant("SEC-VIS-2")
@pytest.mark.parametrize("membership", ["leave", "ban"])
async def test_sec_vis_2_who_never_joined_sees_no_state_of_the_room(
    alice: Client, bob: Client, membership: str
) -> None:
    room_id = await alice.create_room(preset="private_chat", invite=[bob.user_id])
    token = (await bob.sync())["next_batch"]
    for number in range(12):
        await alice.set_state(room_id, "org.example.secret", {"secret": number})
    await member(alice, room_id, bob, membership)
    await alice.set_state(room_id, "org.example.secret", {"secret": "later"})

    queries: list[tuple[str | None, dict[str, Any]]] = [
        (token, {}),
        (token, {"use_state_after": True}),
        (token, {"full_state": True}),
        (token, {"filter": {"room": {"timeline": {"limit": 0}}}}),
        (None, {"filter": {"room": {"include_leave": True}}}),
        (None, {"filter": {"room": {"include_leave": True, "state": {"lazy_load_members": True}}}}),
    ]
    for since, query in queries:
        answer = await bob.sync(since, **query)
        room = left(answer, room_id)
        state = room.get("state", room.get("state_after"))["events"]
        own = room["timeline"]["events"] + state
        assert own[-1]["state_key"] == bob.user_id
        assert own[-1]["content"]["membership"] == membership
        assert "secret" not in str(answer)


async def test_a_ban_after_a_leave_brings_nothing_from_between(alice: Client, bob: Client) -> None:
    room_id = await alice.create_room()
    await bob.join(room_id)
    token = (await bob.sync())["next_batch"]
    await bob.in_room("POST", room_id, "leave", {})
    left_token = (await bob.sync())["next_batch"]
    await alice.set_state(room_id, "m.room.topic", {"topic": "secret"})
    for _ in range(12):
        await alice.say(room_id, "secret")
    await member(alice, room_id, bob, "ban")

    for since in (token, left_token, None):
        for state_after in (False, True):
            answer = await bob.sync(
                since, filter={"room": {"include_leave": True}}, use_state_after=state_after
            )
            room = left(answer, room_id)
            assert room["timeline"]["events"][-1]["content"]["membership"] == "ban"
            assert "secret" not in str(answer)


async def test_a_left_room_shows_its_state_as_it_was_at_the_end(alice: Client, bob: Client) -> None:
    room_id = await alice.create_room(name="Tea", topic="one")
    await bob.join(room_id)
    await alice.set_state(room_id, "m.room.topic", {"topic": "two"})
    await bob.in_room("POST", room_id, "leave", {})
    await alice.set_state(room_id, "m.room.topic", {"topic": "three"})

    no_timeline = {"room": {"include_leave": True, "timeline": {"limit": 0}}}
    room = left(await bob.sync(filter=no_timeline), room_id)
    state = {(event["type"], event["state_key"]): event["content"] for event in room["state"]["events"]}
    assert state["m.room.topic", ""] == {"topic": "two"}
    assert state["m.room.member", bob.user_id]["membership"] == "leave"
    assert room["timeline"]["events"] == []


async def test_a_room_entered_and_left_between_two_tokens_comes_whole(alice: Client, bob: Client) -> None:
    room_id = await alice.create_room(name="Tea", preset="private_chat")
    for number in range(12):
        await alice.say(room_id, str(number))
    token = (await bob.sync())["next_batch"]
    await alice.in_room("POST", room_id, "invite", {"user_id": bob.user_id})
    await bob.join(room_id)
    await alice.say(room_id, "hello bob")
    await bob.in_room("POST", room_id, "leave", {})
    await alice.say(room_id, "bob is gone")

    answer = await bob.sync(token)
    assert list(answer["rooms"]) == ["leave"]
    room = left(answer, room_id)
    assert bodies(room)[-1] == "hello bob"
    assert room["timeline"]["events"][-1]["content"]["membership"] == "leave"
    assert {"m.room.create", "m.room.name"} <= set(types(room["state"]["events"]))


async def test_the_previous_content_is_shown_only_to_those_who_could_see_it(
    alice: Client, bob: Client
) -> None:
    room_id = await alice.create_room()
    await set_visibility(alice, room_id, "joined")
    await alice.set_state(room_id, "m.room.topic", {"topic": "hidden"})
    await set_visibility(alice, room_id, "shared")
    await alice.set_state(room_id, "m.room.topic", {"topic": "shown"})
    await bob.join(room_id)

    events = joined(await bob.sync(), room_id)["timeline"]["events"]
    [topic] = [event for event in events if event["type"] == "m.room.topic"]
    assert topic["content"] == {"topic": "shown"}
    assert "prev_content" not in topic["unsigned"]
    own = joined(await alice.sync(), room_id)["timeline"]["events"]
    assert {"topic": "hidden"} in [event["unsigned"].get("prev_content") for event in own]


async def test_an_invite_shows_who_invites(alice: Client, bob: Client) -> None:
    room_id = await alice.create_room(preset="private_chat", invite=[bob.user_id])
    events = (await bob.sync())["rooms"]["invite"][room_id]["invite_state"]["events"]
    members = {event["state_key"]: event for event in events if event["type"] == "m.room.member"}
    assert members[alice.user_id]["content"]["membership"] == "join"
    assert members[bob.user_id]["sender"] == alice.user_id
