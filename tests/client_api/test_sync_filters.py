"""Client-Server API, "Syncing" with filters: what is left out, lazy-loaded members, formats of events."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client_api.test_sync import SYNC, bodies, joined, types
from tests.clients import Client
from tests.servers import RunningServer, StartServer

LAZY = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 2}}}


def members(answer: Any, room_id: str, key: str = "state") -> list[str]:
    """The users whose member events are in a room's state."""
    events = joined(answer, room_id)[key]["events"]
    return [event["state_key"] for event in events if event["type"] == "m.room.member"]


async def all_answers(client: Client, start_server: StartServer, since: str, **query: Any) -> tuple[Any, Any]:
    """The same sync answered from memory, and by a server that has nothing in memory."""
    other = await start_server()
    return await client.sync(since, **query), await other.nobody.as_user(client).sync(since, **query)


async def test_a_filtered_timeline_holds_as_many_events_as_it_may(
    alice: Client, start_server: StartServer
) -> None:
    room_id = await alice.create_room()
    token = (await alice.sync())["next_batch"]
    for number in range(3):
        await alice.say(room_id, str(number))
    for number in range(30):
        await alice.set_state(room_id, "org.example.number", {"number": number})
    messages = {"room": {"timeline": {"types": ["m.room.message"], "limit": 2}}}

    for answer in (*await all_answers(alice, start_server, token, filter=messages), None):
        room = joined(answer or await alice.sync(filter=messages), room_id)
        assert bodies(room) == ["1", "2"]
        assert room["timeline"]["limited"] is True
        history = await alice.in_room("GET", room_id, f"messages?dir=b&from={room['timeline']['prev_batch']}")
        assert history["chunk"][0]["content"].get("body") == "0"


async def test_prev_batch_is_just_before_the_first_event_that_is_given(
    alice: Client, start_server: StartServer
) -> None:
    room_id = await alice.create_room()
    token = (await alice.sync())["next_batch"]
    await alice.set_state(room_id, "org.example.state", {"left": "out"})
    await alice.say(room_id, "given")
    no_state = {"room": {"timeline": {"not_types": ["org.example.state"]}}}

    for answer in await all_answers(alice, start_server, token, filter=no_state):
        room = joined(answer, room_id)
        assert (bodies(room), room["timeline"]["limited"]) == (["given"], False)
        history = await alice.in_room("GET", room_id, f"messages?dir=b&from={room['timeline']['prev_batch']}")
        assert history["chunk"][0]["type"] == "org.example.state"


async def test_the_state_is_that_before_the_timeline_also_where_the_timeline_changes_it(
    alice: Client, start_server: StartServer
) -> None:
    room_id = await alice.create_room()
    token = (await alice.sync())["next_batch"]
    topics = [await alice.set_state(room_id, "m.room.topic", {"topic": text}) for text in ("one", "two")]
    two = {"room": {"timeline": {"limit": 2}}}
    await alice.say(room_id, "last")

    for answer in await all_answers(alice, start_server, token, filter=two):
        room = joined(answer, room_id)
        assert room["timeline"]["events"][0]["event_id"] == topics[1]
        assert [event["event_id"] for event in room["state"]["events"]] == topics[:1]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"types": ["m.room.name"]}, {"m.room.name"}),
        ({"types": []}, set()),
        ({"not_types": ["m.room.[a-z]*", "m.room.*"]}, {"org.example.cake"}),
        ({"types": ["m.room.member", "org.*"], "contains_url": True}, {"org.example.cake"}),
        ({"rooms": ["!another:test"]}, set()),
        ({"senders": ["@another:test"]}, set()),
    ],
)
async def test_a_filter_of_state_holds_for_all_of_it(
    alice: Client, wanted: dict[str, Any], expected: set[str]
) -> None:
    room_id = await alice.create_room(name="Tea")
    await alice.set_state(room_id, "org.example.cake", {"url": "mxc://test/cake"})
    token = (await alice.sync())["next_batch"]
    for extra in ({}, {"lazy_load_members": True}):
        no_timeline = {"room": {"timeline": {"limit": 0}, "state": {**wanted, **extra}}}
        for query in ({}, {"since": token, "full_state": True}):
            room = joined(await alice.sync(filter=no_timeline, **query), room_id)
            assert set(types(room["state"]["events"])) == expected


async def test_a_filter_names_rooms_for_timelines_and_state_apart(alice: Client) -> None:
    room_id, other = await alice.create_room(), await alice.create_room()
    token = (await alice.sync())["next_batch"]
    await alice.say(room_id, "hidden")
    await alice.say(other, "shown")
    parts = {"room": {"timeline": {"not_rooms": [room_id]}, "state": {"rooms": [room_id]}}}

    assert list((await alice.sync(token, filter=parts))["rooms"]["join"]) == [other]
    initial = await alice.sync(filter=parts)
    assert joined(initial, room_id)["timeline"]["events"] == []
    assert "m.room.create" in types(joined(initial, room_id)["state"]["events"])
    assert joined(initial, other)["state"]["events"] == []


async def test_a_sync_is_not_woken_by_what_its_filter_leaves_out(alice: Client) -> None:
    room_id = await alice.create_room()
    token = (await alice.sync())["next_batch"]
    await alice.say(room_id, "left out")
    nothing: dict[str, Any] = {"room": {"timeline": {"types": []}, "state": {"types": []}}}
    assert (await alice.sync(token, filter=nothing, timeout=50))["rooms"] == {}


async def test_a_change_of_members_in_a_gap_changes_the_counts(
    alice: Client, bob: Client, start_server: StartServer
) -> None:
    room_id = await alice.create_room(name="Tea")
    token = (await alice.sync())["next_batch"]
    await bob.join(room_id)
    for number in range(12):
        await alice.say(room_id, str(number))

    for answer in await all_answers(alice, start_server, token):
        assert joined(answer, room_id)["summary"]["m.joined_member_count"] == 2


async def test_nobody_is_its_own_hero(server: RunningServer, alice: Client, bob: Client) -> None:
    room_id = await alice.create_room()
    carol, dave = [await server.nobody.register(name) for name in (f"carol{id(bob)}", f"dave{id(bob)}")]
    for user in (bob, carol):
        await user.join(room_id)
    tokens = {user: (await user.sync())["next_batch"] for user in (alice, bob, carol)}
    await dave.join(room_id)

    everybody = [user.user_id for user in (alice, bob, carol, dave)]
    for user, token in tokens.items():
        summary = joined(await user.sync(token), room_id)["summary"]
        assert summary["m.heroes"] == [user_id for user_id in everybody if user_id != user.user_id]
        assert summary["m.joined_member_count"] == 4


async def test_a_room_with_an_empty_name_has_heroes(alice: Client, bob: Client) -> None:
    room_id = await alice.create_room(name="Tea")
    await bob.join(room_id)
    token = (await alice.sync())["next_batch"]
    for name in ("", ["no text"]):
        await alice.set_state(room_id, "m.room.name", {"name": name})
        answer = await alice.sync(token)
        assert joined(answer, room_id)["summary"]["m.heroes"] == [bob.user_id]
        assert joined(await alice.sync(), room_id)["summary"]["m.heroes"] == [bob.user_id]


async def test_the_last_member_of_a_room_sees_who_left(alice: Client, bob: Client) -> None:
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.in_room("POST", room_id, "leave", {})
    summary = joined(await alice.sync(), room_id)["summary"]
    assert summary == {
        "m.heroes": [bob.user_id],
        "m.joined_member_count": 1,
        "m.invited_member_count": 0,
    }


async def test_lazy_loading_gives_the_heroes_and_oneself(alice: Client, bob: Client) -> None:
    room_id = await alice.create_room()
    await bob.join(room_id)
    for number in range(3):
        await alice.say(room_id, str(number))
    assert sorted(members(await alice.sync(filter=LAZY), room_id)) == sorted([alice.user_id, bob.user_id])
    room = joined(await bob.sync(filter=LAZY), room_id)
    assert {bob.user_id, alice.user_id} == set(members({"rooms": {"join": {room_id: room}}}, room_id))


async def test_a_lazy_loaded_member_is_given_again_when_the_answer_got_lost(
    alice: Client, bob: Client
) -> None:
    room_id = await alice.create_room(name="Tea")
    await bob.join(room_id)
    for number in range(3):
        await alice.say(room_id, str(number))
    token = (await alice.sync(filter=LAZY))["next_batch"]
    await bob.say(room_id, "me too")

    lost, repeated = [await alice.sync(token, filter=LAZY) for _ in range(2)]
    assert members(lost, room_id) == members(repeated, room_id) == [bob.user_id]
    await bob.say(room_id, "again")
    assert members(await alice.sync(repeated["next_batch"], filter=LAZY), room_id) == []


async def test_redundant_members_are_given_to_those_who_want_them(alice: Client, bob: Client) -> None:
    redundant = {"room": {"state": {"lazy_load_members": True, "include_redundant_members": True}}}
    room_id = await alice.create_room(name="Tea")
    await bob.join(room_id)
    token = (await alice.sync(filter=redundant))["next_batch"]
    for _ in range(2):
        await bob.say(room_id, "hello")
        answer = await alice.sync(token, filter=redundant)
        token = answer["next_batch"]
        assert members(answer, room_id) == [bob.user_id]


async def test_lazy_loading_never_repeats_members_of_the_timeline(
    alice: Client, bob: Client, start_server: StartServer
) -> None:
    room_id = await alice.create_room(name="Tea")
    token = (await alice.sync())["next_batch"]
    await bob.join(room_id)
    await bob.say(room_id, "hello")
    ten = {"room": {"state": {"lazy_load_members": True}}}

    for answer in await all_answers(alice, start_server, token, filter=ten):
        assert members(answer, room_id) == []
    for answer in await all_answers(alice, start_server, token, filter=ten, use_state_after=True):
        assert members(answer, room_id, "state_after") == [bob.user_id]


async def test_a_gap_brings_every_change_of_members_and_those_who_speak_anew(
    alice: Client, bob: Client, start_server: StartServer
) -> None:
    room_id = await alice.create_room(name="Tea")
    await bob.join(room_id)
    await bob.say(room_id, "known")
    token = (await alice.sync(filter=LAZY))["next_batch"]
    profile = {"membership": "join", "displayname": "Bob"}
    changed = await bob.set_state(room_id, "m.room.member", profile, bob.user_id)
    for number in range(3):
        await alice.say(room_id, str(number))

    for answer in await all_answers(alice, start_server, token, filter=LAZY):
        state = joined(answer, room_id)["state"]["events"]
        assert changed in [event["event_id"] for event in state]
        assert sorted(members(answer, room_id)) == sorted([alice.user_id, bob.user_id])


async def test_a_lazy_loaded_member_is_as_it_was_before_the_timeline(
    alice: Client, bob: Client, start_server: StartServer
) -> None:
    room_id = await alice.create_room(name="Tea")
    await bob.join(room_id)
    token = (await alice.sync())["next_batch"]
    await bob.say(room_id, "hello")
    await bob.in_room("POST", room_id, "leave", {})
    ten = {"room": {"state": {"lazy_load_members": True}}}

    for answer in await all_answers(alice, start_server, token, filter=ten):
        [member] = joined(answer, room_id)["state"]["events"]
        assert (member["state_key"], member["content"]["membership"]) == (bob.user_id, "join")


async def test_only_the_fields_that_are_wanted_come(alice: Client, start_server: StartServer) -> None:
    room_id = await alice.create_room(name="Tea")
    token = (await alice.sync())["next_batch"]
    await alice.say(room_id, "hello")
    fields = {"event_fields": ["content.body", r"content.m\.relates_to", "type"]}
    expected = [{"type": "m.room.message", "content": {"body": "hello"}}]

    for answer in await all_answers(alice, start_server, token, filter=fields):
        assert joined(answer, room_id)["timeline"]["events"] == expected
    state = joined(await alice.sync(filter=fields | {"room": {"timeline": {"limit": 1}}}), room_id)["state"]
    assert {"type": "m.room.name"} in state["events"]


async def test_the_federation_format_is_the_event_as_servers_exchange_it(
    alice: Client, start_server: StartServer
) -> None:
    room_id = await alice.create_room()
    token = (await alice.sync())["next_batch"]
    event_id = await alice.say(room_id, "hello")

    for answer in await all_answers(alice, start_server, token, filter={"event_format": "federation"}):
        [event] = joined(answer, room_id)["timeline"]["events"]
        assert {"auth_events", "prev_events", "depth", "hashes", "room_id"} <= set(event)
        assert (event["event_id"], event["content"]["body"]) == (event_id, "hello")


async def test_state_after_goes_by_its_unstable_name_too(alice: Client) -> None:
    room_id = await alice.create_room()
    for name in ("use_state_after", "org.matrix.msc4222.use_state_after"):
        room = joined((await alice.get(SYNC, {name: "true"})).body, room_id)
        key = "state_after" if name == "use_state_after" else "org.matrix.msc4222.state_after"
        assert "m.room.create" in types(room[key]["events"])
        assert "state" not in room


async def test_from_is_no_parameter_of_a_sync(alice: Client) -> None:
    token = (await alice.sync())["next_batch"]
    assert (await alice.get(SYNC, {"from": token})).error == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("presence", ["offline", "online", "unavailable"])
async def test_a_presence_is_taken(alice: Client, presence: str) -> None:
    assert (await alice.get(SYNC, {"set_presence": presence})).status == 200


async def test_a_token_of_the_future_is_answered(alice: Client) -> None:
    position, rest = (await alice.sync())["next_batch"][1:].split("_", 1)
    answer = await alice.sync(f"s{int(position) + 1_000_000}_{rest}", timeout=50)
    assert answer["rooms"] == {}


async def test_a_redacted_topic_is_not_seen_as_previous_content(
    alice: Client, start_server: StartServer
) -> None:
    room_id = await alice.create_room()
    token = (await alice.sync())["next_batch"]
    first = await alice.set_state(room_id, "m.room.topic", {"topic": "secret"})
    await alice.set_state(room_id, "m.room.topic", {"topic": "fine"})
    await alice.sync(token)
    await alice.in_room("PUT", room_id, f"redact/{first}/1", {})

    for answer in await all_answers(alice, start_server, token):
        assert "secret" not in str(answer)
        events = joined(answer, room_id)["timeline"]["events"]
        assert [event["unsigned"].get("prev_content") for event in events if "topic" in event["content"]] == [
            {}
        ]


async def test_a_redacted_piece_of_state_says_why(alice: Client) -> None:
    room_id = await alice.create_room()
    topic = await alice.set_state(room_id, "m.room.topic", {"topic": "secret"})
    await alice.sync(filter={"room": {"timeline": {"limit": 0}}})
    because = (await alice.in_room("PUT", room_id, f"redact/{topic}/1", {}))["event_id"]
    room = joined(await alice.sync(filter={"room": {"timeline": {"limit": 0}}}), room_id)
    [event] = [event for event in room["state"]["events"] if event["event_id"] == topic]
    assert event["content"] == {}
    assert event["unsigned"]["redacted_because"]["event_id"] == because
