"""Client-Server API, "Published room directory"."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import RoomId, UserId
from homeserver.services.directory_entries import plain_topic
from homeserver.services.event_building import build_event
from homeserver.services.public_rooms import MAX_ROOMS
from storage.room_heads import RoomHead
from tests.client_api.rooms import join, new_room, room_path, set_state
from tests.clients import Client, Response
from tests.servers import RunningServer, StartServer, unique_name

PUBLIC_ROOMS = "/_matrix/client/v3/publicRooms"


def new_word() -> str:
    """A word that no other room has."""
    return f"tea{uuid4().hex}"


async def search(client: Client, term: str, **wanted: Any) -> Response:
    answer = await client.post(PUBLIC_ROOMS, {"filter": {"generic_search_term": term}, **wanted})
    assert answer.status == 200, answer.body
    return answer


async def found(client: Client, term: str, **wanted: Any) -> list[str]:
    return [room["room_id"] for room in (await search(client, term, **wanted)).body["chunk"]]


async def test_an_entry_tells_what_a_room_says_of_itself(alice: Client, bob: Client) -> None:
    word = new_word()
    room_id = await new_room(
        alice,
        visibility="public",
        name=f"Room {word}",
        topic="All about tea",
        room_alias_name=word,
        creation_content={"type": "m.space"},
        initial_state=[
            {"type": "m.room.avatar", "content": {"url": "mxc://example.org/tea"}},
            {"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}},
            {"type": "m.room.guest_access", "content": {"guest_access": "can_join"}},
            {"type": "m.room.join_rules", "content": {"join_rule": "knock"}},
        ],
    )
    await set_state(alice, room_id, "m.room.join_rules", {"join_rule": "public"})
    await join(bob, room_id)

    answer = await search(alice, word)

    assert answer.body["chunk"] == [
        {
            "room_id": room_id,
            "name": f"Room {word}",
            "topic": "All about tea",
            "canonical_alias": f"#{word}:test",
            "avatar_url": "mxc://example.org/tea",
            "num_joined_members": 2,
            "world_readable": True,
            "guest_can_join": True,
            "join_rule": "public",
            "room_type": "m.space",
        }
    ]
    assert answer.body["total_room_count_estimate"] >= 1
    assert "next_batch" not in answer.body
    assert "prev_batch" not in answer.body


async def test_what_a_room_does_not_say_is_left_out(alice: Client) -> None:
    word = new_word()
    room_id = await new_room(
        alice, preset="private_chat", visibility="public", room_alias_name=word, topic=""
    )
    await set_state(alice, room_id, "m.room.name", {"name": ""})

    answer = await search(alice, word)

    assert answer.body["chunk"] == [
        {
            "room_id": room_id,
            "canonical_alias": f"#{word}:test",
            "num_joined_members": 1,
            "world_readable": False,
            "guest_can_join": True,
            "join_rule": "invite",
        }
    ]


async def test_only_published_rooms_with_members_are_listed(alice: Client) -> None:
    word = new_word()
    await new_room(alice, name=word)
    empty = await new_room(alice, name=word, visibility="public")
    await alice.post(room_path(empty, "leave"), {})
    hidden = await new_room(alice, name=word, visibility="public")
    listed = await new_room(alice, name=word, visibility="public")

    await alice.put(f"/_matrix/client/v3/directory/list/room/{hidden}", {"visibility": "private"})

    assert await found(alice, word) == [listed]


@pytest.mark.parametrize("where", ["name", "topic", "room_alias_name"])
async def test_a_search_finds_part_of_a_word_in_any_case(alice: Client, where: str) -> None:
    word = new_word()
    room_id = await new_room(alice, visibility="public", **{where: f"straße{word}ÄÖ"})

    assert await found(alice, f"{word[1:]}äö".upper()) == [room_id]
    assert await found(alice, f"STRASSE{word}") == [room_id]
    assert await found(alice, f"{word}x") == []


async def test_types_of_rooms_can_be_looked_for(alice: Client) -> None:
    word = new_word()
    room = await new_room(alice, visibility="public", name=word)
    space = await new_room(alice, visibility="public", name=word, creation_content={"type": "m.space"})

    async def of_types(room_types: list[str | None] | None) -> set[str]:
        wanted = {"generic_search_term": word, "room_types": room_types}
        answer = await alice.post(PUBLIC_ROOMS, {"filter": wanted})
        assert answer.status == 200, answer.body
        return {entry["room_id"] for entry in answer.body["chunk"]}

    assert await of_types(None) == await of_types([None, "m.space"]) == {room, space}
    assert await of_types([None]) == {room}
    assert await of_types(["m.space"]) == {space}
    assert await of_types([]) == await of_types(["org.example.tea"]) == set()


async def test_the_largest_rooms_come_first(alice: Client, bob: Client) -> None:
    word = new_word()
    small = [await new_room(alice, name=word, visibility="public") for _ in range(2)]
    large = await new_room(alice, name=word, visibility="public")
    await join(bob, large)

    assert await found(alice, word) == [large, *small]
    whole = (await alice.get(PUBLIC_ROOMS)).body["chunk"]
    members = [room["num_joined_members"] for room in whole]
    assert members == sorted(members, reverse=True)


async def test_pages_lead_forth_and_back(alice: Client) -> None:
    word = new_word()
    rooms = [await new_room(alice, name=word, visibility="public") for _ in range(5)]

    first = (await search(alice, word, limit=2)).body
    second = (await search(alice, word, limit=2, since=first["next_batch"])).body
    third = (await search(alice, word, limit=2, since=second["next_batch"])).body
    back = (await search(alice, word, limit=3, since=third["prev_batch"])).body
    start = (await search(alice, word, limit=3, since=back["prev_batch"])).body
    forth = (await search(alice, word, limit=5, since=start["next_batch"])).body

    pages = [
        [rooms.index(room["room_id"]) for room in page["chunk"]]
        for page in (first, second, third, back, start, forth)
    ]
    assert pages == [[0, 1], [2, 3], [4], [1, 2, 3], [0], [1, 2, 3, 4]]
    assert "prev_batch" not in first
    assert "next_batch" not in third
    assert "prev_batch" not in start
    assert "next_batch" not in forth


@pytest.mark.invariant("SEC-PAGE-1")
async def test_sec_page_1_pages_of_one_room_reach_every_room(alice: Client, server: RunningServer) -> None:
    rooms = {await new_room(alice, visibility="public") for _ in range(3)}
    seen: list[str] = []
    query = {"limit": "1"}
    while True:
        page = (await alice.get(PUBLIC_ROOMS, query)).body
        seen.extend(room["room_id"] for room in page["chunk"])
        if "next_batch" not in page:
            break
        query["since"] = page["next_batch"]

    assert rooms <= set(seen)
    assert len(seen) == len(set(seen))


async def test_a_page_has_a_limit_whatever_is_asked_for(alice: Client) -> None:
    for limit in ("0", "1000000"):
        answer = await alice.get(PUBLIC_ROOMS, {"limit": limit})
        assert answer.status == 200
        assert len(answer.body["chunk"]) <= MAX_ROOMS


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "-1"},
        {"limit": "tea"},
        {"limit": "1.5"},
        {"since": "tea"},
        {"since": "n1_2_3"},
        {"since": "n1_" + "9" * 19},
        {"since": ""},
        {"server": "not a server"},
    ],
)
async def test_what_is_no_page_is_refused(alice: Client, query: dict[str, str]) -> None:
    assert (await alice.get(PUBLIC_ROOMS, query)).error == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({"limit": True}, "M_BAD_JSON"),
        ({"limit": -1}, "M_INVALID_PARAM"),
        ({"limit": "1"}, "M_BAD_JSON"),
        ({"since": 1}, "M_BAD_JSON"),
        ({"filter": "tea"}, "M_BAD_JSON"),
        ({"filter": {"generic_search_term": 1}}, "M_BAD_JSON"),
        ({"filter": {"room_types": "m.space"}}, "M_BAD_JSON"),
        ({"filter": {"room_types": [1]}}, "M_BAD_JSON"),
        ({"include_all_networks": True, "third_party_instance_id": "irc"}, "M_INVALID_PARAM"),
    ],
)
async def test_what_is_no_search_is_refused(alice: Client, body: dict[str, Any], errcode: str) -> None:
    assert (await alice.post(PUBLIC_ROOMS, body)).error == (400, errcode)


async def test_a_search_needs_no_body(alice: Client) -> None:
    assert (await alice.post(PUBLIC_ROOMS)).status == 200


async def test_networks_that_nobody_bridges_to_have_no_rooms(alice: Client) -> None:
    await new_room(alice, visibility="public")

    answer = await alice.post(PUBLIC_ROOMS, {"third_party_instance_id": "irc"})

    assert (answer.status, answer.body["chunk"]) == (200, [])


async def test_our_own_directory_may_be_named(alice: Client) -> None:
    assert (await alice.get(PUBLIC_ROOMS, {"server": "test"})).status == 200
    assert (await alice.post(PUBLIC_ROOMS, {}, {"server": "test"})).status == 200


async def test_the_configuration_says_whether_the_directory_is_open(
    server: RunningServer, start_server: StartServer
) -> None:
    opened = await start_server(rooms={"directory_without_auth": True})

    assert (await server.nobody.get(PUBLIC_ROOMS)).error == (401, "M_MISSING_TOKEN")
    assert (await opened.nobody.get(PUBLIC_ROOMS)).status == 200
    assert (await opened.nobody.post(PUBLIC_ROOMS, {})).error == (401, "M_MISSING_TOKEN")
    assert (await opened.nobody.with_token("tea").get(PUBLIC_ROOMS)).error == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.invariant("SEC-JSON-2")
@pytest.mark.parametrize("odd", [None, 1, True, [], {}, [{"body": "tea"}]], ids=str)
async def test_sec_json_2_odd_state_does_not_break_the_directory(
    server: RunningServer, alice: Client, odd: Any
) -> None:
    word = new_word()
    aliases = EventDraft("m.room.canonical_alias", {"alias": odd, "alt_aliases": odd}, "")
    room_id = await new_room(
        alice,
        visibility="public",
        topic=word,
        initial_state=[
            {"type": "m.room.name", "content": {"name": odd}},
            {"type": "m.room.avatar", "content": {"url": odd}},
            {"type": "m.room.history_visibility", "content": {"history_visibility": odd}},
            {"type": "m.room.guest_access", "content": {"guest_access": odd}},
        ],
        creation_content={"type": odd},
    )

    def name_odd_aliases(head: RoomHead) -> list[Pdu]:
        """What no client of ours can, and a user of another server may."""
        return [build_event(head, aliases, UserId(alice.user_id), server.clock())]

    await server.services.room_events.persister.append(RoomId(room_id), name_odd_aliases)
    answer = await search(alice, word)

    assert answer.body["chunk"] == [
        {
            "room_id": room_id,
            "topic": word,
            "num_joined_members": 1,
            "world_readable": False,
            "guest_can_join": False,
            "join_rule": "public",
        }
    ]


@pytest.mark.parametrize(
    ("content", "topic"),
    [
        ({"topic": "tea"}, "tea"),
        ({"m.topic": {"m.text": [{"body": "plain"}]}, "topic": "tea"}, "plain"),
        ({"m.topic": {"m.text": [{"mimetype": "text/html", "body": "<b>"}, {"body": "b"}]}}, "b"),
        ({"m.topic": {"m.text": [{"mimetype": "text/html", "body": "<b>"}]}}, None),
        ({"m.topic": {"m.text": [1, {"body": 2}, {"mimetype": [], "body": "x"}]}, "topic": "tea"}, "tea"),
        ({"m.topic": {"m.text": "tea"}}, None),
        ({"m.topic": "tea"}, None),
        ({"topic": ["tea"]}, None),
        ({}, None),
    ],
)
def test_a_topic_is_read_as_plain_text(content: dict[str, Any], topic: str | None) -> None:
    assert plain_topic(content) == topic


async def test_an_entry_follows_what_the_room_says(alice: Client, bob: Client) -> None:
    word = new_word()
    room_id = await new_room(alice, name=word, visibility="public")
    seen = []
    for name in (f"{word} one", f"{word} two", "x" * 5000 + word, word):
        await set_state(alice, room_id, "m.room.name", {"name": name})
        seen += [(await search(alice, word)).body["chunk"][0]["name"] for _ in range(2)]
    await join(bob, room_id)

    assert seen[::2] == seen[1::2] == [f"{word} one", f"{word} two", "x" * 5000 + word, word]
    assert (await search(alice, word)).body["chunk"][0]["num_joined_members"] == 2
    named = await set_state(alice, room_id, "m.room.name", {"name": word, "org.example.tea": 1})
    assert await found(alice, word) == [room_id]
    redaction = await alice.put(room_path(room_id, "redact", named, "1"), {})
    assert redaction.status == 200
    assert await found(alice, word) == []


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_searches_of_the_directory_have_a_rate_limit(start_server: StartServer) -> None:
    server = await start_server(rate_limits={"directory": {"per_second": 0.001, "burst": 2}})
    alice = await server.nobody.register(unique_name())

    statuses = [(await alice.post(PUBLIC_ROOMS, {})).status for _ in range(3)]

    assert statuses == [200, 200, 429]
