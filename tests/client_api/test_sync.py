"""Client-Server API, section "Syncing"."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.clients import Client
from tests.servers import RunningServer

SYNC = "/_matrix/client/v3/sync"


def joined(answer: Any, room_id: str) -> Any:
    return answer["rooms"]["join"][room_id]


def bodies(room: Any) -> list[str]:
    return [
        event["content"].get("body") for event in room["timeline"]["events"] if "body" in event["content"]
    ]


def types(events: list[Any]) -> list[str]:
    return [event["type"] for event in events]


async def test_a_new_room_comes_whole_in_the_order_of_its_creation(alice: Client) -> None:
    before = await alice.sync()
    room_id = await alice.create_room(name="Tea", topic="Leaves")
    answer = await alice.sync(before["next_batch"])

    room = joined(answer, room_id)
    assert types(room["timeline"]["events"])[:3] == [
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
    ]
    assert room["state"]["events"] == []
    assert room["timeline"]["limited"] is False
    assert set(room) >= {"timeline", "state", "ephemeral", "account_data", "summary"}
    assert room["summary"] == {"m.joined_member_count": 1, "m.invited_member_count": 0}
    assert all("room_id" not in event for event in room["timeline"]["events"])


async def test_a_room_without_news_is_left_out(alice: Client) -> None:
    await alice.create_room()
    other = await alice.create_room()
    token = (await alice.sync())["next_batch"]
    nothing = await alice.sync(token)
    await alice.say(other, "news")
    news = await alice.sync(nothing["next_batch"])

    assert nothing["rooms"] == {}
    assert list(news["rooms"]) == ["join"]
    assert list(news["rooms"]["join"]) == [other]
    assert bodies(joined(news, other)) == ["news"]


async def test_the_same_token_gives_the_same_answer_again(alice: Client) -> None:
    room_id = await alice.create_room()
    token = (await alice.sync())["next_batch"]
    await alice.say(room_id, "once")

    first, second = [await alice.sync(token) for _ in range(2)]
    assert bodies(joined(first, room_id)) == bodies(joined(second, room_id)) == ["once"]


async def test_a_waiting_sync_is_woken_by_the_event_and_not_by_others(alice: Client, bob: Client) -> None:
    shared, private = await alice.create_room(), await alice.create_room()
    await bob.join(shared)
    token = (await bob.sync())["next_batch"]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(bob.sync(token, timeout=30_000))
        await alice.say(private, "not for bob")
        await alice.say(shared, "for bob")

    assert bodies(joined(waiting.result(), shared)) == ["for bob"]
    assert private not in waiting.result()["rooms"]["join"]


async def test_a_sync_that_waited_in_vain_returns_a_token_and_nothing_else(alice: Client) -> None:
    token = (await alice.sync())["next_batch"]
    answer = await alice.sync(token, timeout=50)
    assert answer["rooms"] == {}
    assert (await alice.sync(answer["next_batch"]))["rooms"] == {}


async def test_a_gap_is_limited_and_carries_the_state_that_the_timeline_does_not(alice: Client) -> None:
    room_id = await alice.create_room()
    token = (await alice.sync())["next_batch"]
    topic = await alice.set_state(room_id, "m.room.topic", {"topic": "Leaves"})
    for number in range(15):
        await alice.say(room_id, str(number))
    await alice.set_state(room_id, "m.room.name", {"name": "Tea"})

    room = joined(await alice.sync(token), room_id)
    assert room["timeline"]["limited"] is True
    assert bodies(room) == [str(number) for number in range(6, 15)]
    assert [event["event_id"] for event in room["state"]["events"]] == [topic]


async def test_state_after_is_the_state_at_the_end_of_the_timeline(alice: Client) -> None:
    room_id = await alice.create_room()
    token = (await alice.sync())["next_batch"]
    topics = [await alice.set_state(room_id, "m.room.topic", {"topic": text}) for text in ("one", "two")]
    answer = await alice.sync(token, use_state_after=True)
    quiet = await alice.say(room_id, "no state")
    later = await alice.sync(answer["next_batch"], use_state_after=True)

    room = joined(answer, room_id)
    assert [event["event_id"] for event in room["timeline"]["events"]] == topics
    assert [event["event_id"] for event in room["state_after"]["events"]] == topics[1:]
    assert "state" not in room
    assert [event["event_id"] for event in joined(later, room_id)["timeline"]["events"]] == [quiet]
    assert joined(later, room_id)["state_after"]["events"] == []


async def test_full_state_gives_all_state_at_once_and_only_new_events(alice: Client) -> None:
    room_id = await alice.create_room(name="Tea")
    token = (await alice.sync())["next_batch"]
    event_id = await alice.say(room_id, "new")

    room = joined(await alice.sync(token, full_state=True, timeout=30_000), room_id)
    assert [event["event_id"] for event in room["timeline"]["events"]] == [event_id]
    assert {"m.room.create", "m.room.name", "m.room.member"} <= set(types(room["state"]["events"]))


async def test_an_invite_shows_some_of_the_room_and_the_invite_itself(alice: Client, bob: Client) -> None:
    token = (await bob.sync())["next_batch"]
    room_id = await alice.create_room(name="Tea", invite=[bob.user_id], is_direct=True, preset="private_chat")

    answer = await bob.sync(token)
    invite = answer["rooms"]["invite"][room_id]["invite_state"]["events"]
    by_type = {event["type"]: event for event in invite}
    assert {"m.room.create", "m.room.join_rules", "m.room.name", "m.room.member"} <= set(by_type)
    assert by_type["m.room.member"]["content"]["is_direct"] is True
    assert by_type["m.room.member"]["state_key"] == bob.user_id
    assert "origin_server_ts" in by_type["m.room.create"]  # the room's ID is made of it
    assert all(
        set(event) - {"origin_server_ts"} == {"type", "state_key", "sender", "content"} for event in invite
    )
    assert [event["type"] for event in invite if "origin_server_ts" in event] == ["m.room.create"]
    assert "join" not in answer["rooms"]


async def test_a_join_after_an_invite_moves_the_room_and_brings_its_state(alice: Client, bob: Client) -> None:
    room_id = await alice.create_room(invite=[bob.user_id])
    for number in range(20):
        await alice.say(room_id, str(number))
    token = (await bob.sync())["next_batch"]
    await bob.join(room_id)

    answer = await bob.sync(token)
    room = joined(answer, room_id)
    assert "invite" not in answer["rooms"]
    assert room["timeline"]["limited"] is True
    assert {"m.room.create", "m.room.power_levels", "m.room.member"} <= set(types(room["state"]["events"]))
    assert room["summary"]["m.joined_member_count"] == 2
    assert room["timeline"]["events"][-1]["unsigned"]["prev_content"] == {"membership": "invite"}


@pytest.mark.invariant("SEC-VIS-2")
async def test_sec_vis_2_nothing_after_a_kick_is_shown_also_to_one_who_waits(
    alice: Client, bob: Client
) -> None:
    room_id = await alice.create_room()
    await bob.join(room_id)
    token = (await bob.sync())["next_batch"]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(bob.sync(token, timeout=30_000))
        await alice.in_room("POST", room_id, "kick", {"user_id": bob.user_id, "reason": "rude"})
    await alice.say(room_id, "about bob")

    for answer in (waiting.result(), await bob.sync(token)):
        room = answer["rooms"]["leave"][room_id]
        assert types(room["timeline"]["events"]) == ["m.room.member"]
        assert room["timeline"]["events"][0]["content"]["reason"] == "rude"
        assert "join" not in answer["rooms"]
    later = await bob.sync(waiting.result()["next_batch"])
    assert later["rooms"] == {}


async def test_a_room_that_was_left_shows_in_an_initial_sync_only_when_asked_for(
    alice: Client, bob: Client
) -> None:
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.in_room("POST", room_id, "leave", {})
    plain = await bob.sync()
    included = await bob.sync(filter={"room": {"include_leave": True}})
    await bob.in_room("POST", room_id, "forget", {})
    forgotten = await bob.sync(filter={"room": {"include_leave": True}})

    assert plain["rooms"] == forgotten["rooms"] == {}
    assert types(included["rooms"]["leave"][room_id]["timeline"]["events"])[-1] == "m.room.member"


async def test_joining_again_between_two_tokens_shows_the_room_only_as_joined(
    alice: Client, bob: Client
) -> None:
    room_id = await alice.create_room()
    await bob.join(room_id)
    token = (await bob.sync())["next_batch"]
    await bob.in_room("POST", room_id, "leave", {})
    await bob.join(room_id)

    answer = await bob.sync(token)
    assert list(answer["rooms"]) == ["join"]
    assert [event["content"]["membership"] for event in joined(answer, room_id)["timeline"]["events"]][
        -1
    ] == "join"


async def test_the_transaction_id_is_shown_to_the_sending_device_alone(
    server: RunningServer, alice: Client
) -> None:
    room_id = await alice.create_room()
    other_device = await server.nobody.log_in(alice)
    tokens = [(await device.sync())["next_batch"] for device in (alice, other_device)]
    event_id = await alice.say(room_id, "hello", "my-txn")

    own = joined(await alice.sync(tokens[0]), room_id)["timeline"]["events"]
    other = joined(await other_device.sync(tokens[1]), room_id)["timeline"]["events"]
    initial = joined(await alice.sync(), room_id)["timeline"]["events"]
    assert own[0]["unsigned"]["transaction_id"] == initial[-1]["unsigned"]["transaction_id"] == "my-txn"
    assert own[0]["event_id"] == other[0]["event_id"] == event_id
    assert "transaction_id" not in other[0]["unsigned"]


async def test_lazy_loading_gives_the_members_who_speak_and_each_once(alice: Client, bob: Client) -> None:
    lazy = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 2}}}
    room_id = await alice.create_room(name="Tea")
    await bob.join(room_id)
    for number in range(3):
        await alice.say(room_id, str(number))
    first = await alice.sync(filter=lazy)
    await bob.say(room_id, "me too")
    second = await alice.sync(first["next_batch"], filter=lazy)
    await bob.say(room_id, "again")
    third = await alice.sync(second["next_batch"], filter=lazy)

    def members(answer: Any) -> list[str]:
        events = joined(answer, room_id)["state"]["events"]
        return [event["state_key"] for event in events if event["type"] == "m.room.member"]

    assert members(first) == [alice.user_id]
    assert members(second) == [bob.user_id]
    assert members(third) == []


async def test_a_filter_leaves_out_types_and_rooms(alice: Client) -> None:
    room_id, other = await alice.create_room(), await alice.create_room()
    token = (await alice.sync())["next_batch"]
    await alice.say(room_id, "words")
    await alice.set_state(room_id, "m.room.topic", {"topic": "t"})
    await alice.say(other, "elsewhere")
    only_messages = {"room": {"timeline": {"types": ["m.room.mess*"]}, "not_rooms": [other]}}

    answer = await alice.sync(token, filter=only_messages)
    assert list(answer["rooms"]["join"]) == [room_id]
    assert types(joined(answer, room_id)["timeline"]["events"]) == ["m.room.message"]
    assert types(joined(answer, room_id)["state"]["events"]) == ["m.room.topic"]


async def test_a_timeline_of_no_events_leaves_all_to_the_state(alice: Client) -> None:
    room_id = await alice.create_room(name="Tea")
    answer = await alice.sync(filter={"room": {"timeline": {"limit": 0}}})
    room = joined(answer, room_id)
    assert room["timeline"]["events"] == []
    assert "m.room.name" in types(room["state"]["events"])


async def test_a_redacted_event_is_pruned_wherever_it_comes_from(alice: Client, bob: Client) -> None:
    room_id = await alice.create_room()
    await bob.join(room_id)
    token = (await bob.sync())["next_batch"]
    event_id = await alice.say(room_id, "regret")
    path = f"redact/{event_id}/1"
    redaction = (await alice.in_room("PUT", room_id, path, {"reason": "typo"}))["event_id"]

    for answer in (await bob.sync(token), await bob.sync()):
        [pruned] = [
            event for event in joined(answer, room_id)["timeline"]["events"] if event["event_id"] == event_id
        ]
        assert pruned["content"] == {}
        assert pruned["unsigned"]["redacted_because"]["event_id"] == redaction
        assert pruned["unsigned"]["redacted_because"]["content"]["redacts"] == event_id


@pytest.mark.parametrize("since", ["s", "x1", "s1", "s99999999999999999999_1_a", "t1_0", ""])
async def test_a_token_that_is_none_is_refused(alice: Client, since: str) -> None:
    answer = await alice.get(SYNC, {"since": since})
    assert answer.error == (400, "M_INVALID_PARAM")


async def test_a_token_of_another_history_begins_anew(alice: Client) -> None:
    room_id = await alice.create_room()
    answer = await alice.sync("s1_1_another")
    assert "m.room.create" in types(joined(answer, room_id)["timeline"]["events"])


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"filter": "{"}, (400, "M_NOT_JSON")),
        ({"filter": '{"room": []}'}, (400, "M_BAD_JSON")),
        ({"filter": "unknown"}, (400, "M_INVALID_PARAM")),
        ({"timeout": "-1"}, (400, "M_INVALID_PARAM")),
        ({"timeout": "soon"}, (400, "M_INVALID_PARAM")),
    ],
)
async def test_a_wrong_parameter_is_named(
    alice: Client, query: dict[str, str], error: tuple[int, str]
) -> None:
    assert (await alice.get(SYNC, query)).error == error


@pytest.mark.invariant("PROM-SYNC")
async def test_prom_sync_every_event_reaches_every_device_once_and_in_order(
    server: RunningServer, alice: Client, bob: Client
) -> None:
    room_id = await alice.create_room()
    await bob.join(room_id)
    devices = [alice, bob, await server.nobody.log_in(bob)]
    tokens = [(await device.sync())["next_batch"] for device in devices]
    sent: list[str] = []
    everything = {"room": {"timeline": {"limit": 100}}}

    async def speak(speaker: Client) -> None:
        sent.extend([await speaker.say(room_id, str(number)) for number in range(25)])

    async def listen(device: Client, token: str) -> list[str]:
        heard: list[str] = []
        while len(heard) < 50:
            answer = await device.sync(token, timeout=10_000, filter=everything)
            token = answer["next_batch"]
            for room in answer["rooms"].get("join", {}).values():
                assert room["timeline"]["limited"] is False
                heard += [event["event_id"] for event in room["timeline"]["events"]]
        return heard

    async with asyncio.TaskGroup() as tasks:
        listeners = [
            tasks.create_task(listen(device, token)) for device, token in zip(devices, tokens, strict=True)
        ]
        tasks.create_task(speak(alice))
        tasks.create_task(speak(bob))
    assert all(listener.result() == listeners[0].result() for listener in listeners)
    assert sorted(listeners[0].result()) == sorted(sent)
