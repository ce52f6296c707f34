"""The directories of other servers, and ours as other servers see it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from homeserver.services.lookups import MAX_TOKEN_CHARS
from homeserver.services.public_rooms import MAX_ROOMS
from tests.client_api.rooms import new_room
from tests.clients import Client, Response
from tests.federation.homeservers import DENIED, NOBODY_THERE, ask, name_of, new_word
from tests.federation.peers import Peer, json_answer
from tests.servers import RunningServer, StartServer, unique_name

OF_CLIENTS = "/_matrix/client/v3/publicRooms"
OF_SERVERS = "/_matrix/federation/v1/publicRooms"

ENTRY = {"room_id": "!tea:tea.test", "num_joined_members": 1, "world_readable": False, "guest_can_join": True}

FORBIDDEN, NO_ANSWER = (403, "M_FORBIDDEN"), (502, "M_UNKNOWN")


async def search(client: Client, server: str, term: str, **wanted: Any) -> Response:
    body = {"filter": {"generic_search_term": term}, **wanted}
    answer = await client.post(OF_CLIENTS, body, {"server": server})
    assert answer.status == 200, answer.body
    return answer


def room_ids(answer: Response) -> list[str]:
    return [room["room_id"] for room in answer.body["chunk"]]


async def test_the_directory_of_another_server_is_listed_and_searched(
    there: RunningServer, alice: Client, bob: Client
) -> None:
    word = new_word()
    room_id = await new_room(
        bob, visibility="public", name=f"Room {word}", topic="All about tea", room_alias_name=word
    )
    space = await new_room(bob, visibility="public", name=word, creation_content={"type": "m.space"})
    await new_room(bob, name=word)

    found = await search(alice, name_of(there), word)
    listed = await alice.get(OF_CLIENTS, {"server": name_of(there)})
    spaces = {"generic_search_term": word, "room_types": ["m.space"]}
    found_spaces = await alice.post(OF_CLIENTS, {"filter": spaces}, {"server": name_of(there)})

    assert found.body == (await search(bob, name_of(there), word)).body
    assert sorted(room_ids(found)) == sorted([room_id, space])
    assert (
        found.body["chunk"][room_ids(found).index(room_id)]["canonical_alias"] == f"#{word}:{name_of(there)}"
    )
    assert {room_id, space} <= set(room_ids(listed))
    assert room_ids(found_spaces) == [space]
    assert room_ids(await search(alice, name_of(there), new_word())) == []


async def test_the_directory_of_another_server_comes_in_pages(
    there: RunningServer, alice: Client, bob: Client
) -> None:
    word = new_word()
    rooms = {await new_room(bob, visibility="public", name=word) for _ in range(3)}

    first = await search(alice, name_of(there), word, limit=2)
    second = await search(alice, name_of(there), word, limit=2, since=first.body["next_batch"])
    back = await search(alice, name_of(there), word, limit=2, since=second.body["prev_batch"])
    got = await alice.get(OF_CLIENTS, {"server": name_of(there), "limit": "1"})
    wrong = await alice.get(OF_CLIENTS, {"server": name_of(there), "since": "tea"})

    assert (len(room_ids(first)), len(room_ids(second))) == (2, 1)
    assert {*room_ids(first), *room_ids(second)} == rooms
    assert room_ids(back) == room_ids(first)
    assert len(room_ids(got)) == 1
    assert wrong.error == NO_ANSWER


async def test_other_servers_see_the_published_rooms_that_their_users_may_join(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    word = new_word()
    room_id = await new_room(alice, visibility="public", name=word)
    own = await new_room(alice, visibility="public", name=word, creation_content={"m.federate": False})
    await new_room(alice, name=word)
    wanted = {"filter": {"generic_search_term": word, "org.example.more": 1}}

    got = await ask(here, peer, f"{OF_SERVERS}?limit=0&include_all_networks=true")
    posted = await ask(here, peer, OF_SERVERS, wanted)
    untyped = await ask(here, peer, OF_SERVERS, {"filter": {"room_types": [None]}, "limit": 0})
    spaces = await ask(here, peer, OF_SERVERS, {"filter": {"room_types": ["m.space"]}, "limit": 1})
    bridged = await ask(here, peer, f"{OF_SERVERS}?third_party_instance_id=irc")

    assert room_id in room_ids(got)
    assert own not in room_ids(got)
    assert posted.body["chunk"] == [
        {
            "room_id": room_id,
            "num_joined_members": 1,
            "world_readable": False,
            "guest_can_join": False,
            "name": word,
            "join_rule": "public",
        }
    ]
    assert sorted(room_ids(await search(alice, name_of(here), word))) == sorted([room_id, own])
    assert room_id in room_ids(untyped)
    assert room_ids(spaces) == room_ids(bridged) == []


async def test_other_servers_page_through_the_directory(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    for number in range(3):
        federates = {"m.federate": number != 1}
        await new_room(alice, visibility="public", name=new_word(), creation_content=federates)
    everything = room_ids(await ask(here, peer, OF_SERVERS))
    seen, since = [], ""
    for _ in everything:
        page = await ask(here, peer, f"{OF_SERVERS}?limit=1{since}")
        seen += room_ids(page)
        since = f"&since={page.body.get('next_batch')}"

    assert seen == everything
    assert since == "&since=None"


@pytest.mark.parametrize(
    ("query", "content", "errcode"),
    [
        ("?limit=-1", None, "M_INVALID_PARAM"),
        ("?limit=tea", None, "M_INVALID_PARAM"),
        ("?since=tea", None, "M_INVALID_PARAM"),
        ("?include_all_networks=1", None, "M_INVALID_PARAM"),
        ("?include_all_networks=true&third_party_instance_id=irc", None, "M_INVALID_PARAM"),
        ("", {"limit": -1}, "M_INVALID_PARAM"),
        ("", {"since": "n1_2_3"}, "M_INVALID_PARAM"),
        ("", {"include_all_networks": True, "third_party_instance_id": "irc"}, "M_INVALID_PARAM"),
        ("", {"limit": "1"}, "M_BAD_JSON"),
        ("", {"filter": []}, "M_BAD_JSON"),
        ("", {"filter": {"room_types": [1]}}, "M_BAD_JSON"),
    ],
)
async def test_what_is_no_part_of_the_directory_is_refused(
    here: RunningServer, peer: Peer, query: str, content: dict[str, Any] | None, errcode: str
) -> None:
    assert (await ask(here, peer, OF_SERVERS + query, content)).error == (400, errcode)


async def test_the_configuration_keeps_the_directory_from_other_servers(
    start_server: StartServer, peer: Peer
) -> None:
    server = await start_server(rooms={"directory_over_federation": False})
    alice = await server.nobody.register(unique_name("alice"))

    assert (await ask(server, peer, OF_SERVERS)).error == FORBIDDEN
    assert (await ask(server, peer, OF_SERVERS, {})).error == FORBIDDEN
    assert (await server.nobody.get(OF_SERVERS)).error == (401, "M_UNAUTHORIZED")
    assert (await alice.get(OF_CLIENTS)).status == 200


async def test_only_users_make_us_ask_other_servers(start_server: StartServer, peer: Peer) -> None:
    server = await start_server(rooms={"directory_without_auth": True})

    assert (await server.nobody.get(OF_CLIENTS, {"server": "test"})).status == 200
    assert (await server.nobody.get(OF_CLIENTS, {"server": peer.name})).error == (401, "M_MISSING_TOKEN")
    assert peer.server.received == []


async def test_entries_that_are_malformed_are_left_out_alone(alice: Client, peer: Peer) -> None:
    odd: dict[str, Any] = {
        "name": ["x"],
        "topic": {"body": "x"},
        "avatar_url": 1,
        "canonical_alias": "tea",
        "join_rule": None,
        "room_type": "",
        "org.example.more": {"a": 1},
    }
    chunk: list[Any] = [
        None,
        "!tea:tea.test",
        [],
        {},
        *({key: value for key, value in ENTRY.items() if key != missing} for missing in ENTRY),
        {**ENTRY, "room_id": "tea"},
        {**ENTRY, "room_id": 1},
        {**ENTRY, "num_joined_members": True},
        {**ENTRY, "num_joined_members": 1.5},
        {**ENTRY, "num_joined_members": -1},
        {**ENTRY, "num_joined_members": 2**63},
        {**ENTRY, "world_readable": 1},
        {**ENTRY, "guest_can_join": "true"},
        {**ENTRY, **odd},
        {**ENTRY, "room_id": "!last:tea.test", "name": "Tea", "canonical_alias": "#tea:tea.test"},
    ]
    peer.answers[OF_SERVERS] = lambda: json_answer({"chunk": chunk, "org.example.more": [{}]})

    answer = await alice.get(OF_CLIENTS, {"server": peer.name})

    last = {**ENTRY, "room_id": "!last:tea.test", "name": "Tea", "canonical_alias": "#tea:tea.test"}
    assert (answer.status, answer.body) == (200, {"chunk": [ENTRY, last]})


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            {"next_batch": "n", "prev_batch": "p", "total_room_count_estimate": 7},
            {"next_batch": "n", "prev_batch": "p", "total_room_count_estimate": 7},
        ),
        ({"next_batch": None, "prev_batch": 1, "total_room_count_estimate": "7"}, {}),
        ({"next_batch": {}, "prev_batch": "", "total_room_count_estimate": -1}, {}),
        ({"next_batch": "n" * (MAX_TOKEN_CHARS + 1), "total_room_count_estimate": True}, {}),
        ({"total_room_count_estimate": 2**60}, {}),
    ],
)
async def test_what_else_is_said_of_a_directory_is_told_if_it_can_be(
    alice: Client, peer: Peer, said: dict[str, Any], told: dict[str, Any]
) -> None:
    peer.answers[OF_SERVERS] = lambda: json_answer({"chunk": [], **said})

    assert (await alice.get(OF_CLIENTS, {"server": peer.name})).body == {"chunk": [], **told}


async def test_another_server_is_asked_as_the_client_asks(alice: Client, peer: Peer) -> None:
    peer.answers[OF_SERVERS] = lambda: json_answer({"chunk": [ENTRY] * 1000})
    bare = await alice.get(OF_CLIENTS, {"server": peer.name})
    wanted = {
        "limit": 3,
        "since": "x" * MAX_TOKEN_CHARS,
        "filter": {"generic_search_term": "tea", "room_types": [None, "m.space"]},
        "third_party_instance_id": "irc",
    }
    full = await alice.post(OF_CLIENTS, wanted, {"server": peer.name})
    await alice.post(OF_CLIENTS, {"limit": 10**6, "include_all_networks": True}, {"server": peer.name})

    asked = [(received.method, orjson.loads(received.body)) for received in peer.server.received]
    assert asked == [
        ("POST", {"limit": MAX_ROOMS}),
        ("POST", wanted),
        ("POST", {"limit": MAX_ROOMS, "include_all_networks": True}),
    ]
    assert (len(bare.body["chunk"]), len(full.body["chunk"])) == (MAX_ROOMS, 3)


async def test_a_place_that_is_too_long_is_not_asked_for(alice: Client, peer: Peer) -> None:
    since = {"since": "x" * (MAX_TOKEN_CHARS + 1)}

    assert (await alice.post(OF_CLIENTS, since, {"server": peer.name})).error == (400, "M_INVALID_PARAM")
    assert peer.server.received == []


@pytest.mark.parametrize("answer", [{}, {"chunk": None}, {"chunk": {"0": ENTRY}}, {"chunk": "x"}, []])
async def test_an_answer_that_is_no_directory_is_502(alice: Client, peer: Peer, answer: Any) -> None:
    peer.answers[OF_SERVERS] = lambda: json_answer(answer)

    assert (await alice.get(OF_CLIENTS, {"server": peer.name})).error == NO_ANSWER


async def test_servers_that_do_not_tell_their_directory(alice: Client, peer: Peer) -> None:
    peer.answers[OF_SERVERS] = lambda: json_answer({"errcode": "M_FORBIDDEN", "error": "no"}, 403)

    for name, error in ((peer.name, FORBIDDEN), (DENIED, FORBIDDEN), (NOBODY_THERE, NO_ANSWER)):
        assert (await alice.get(OF_CLIENTS, {"server": name})).error == error
        assert (await alice.post(OF_CLIENTS, {}, {"server": name})).error == error


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_other_servers_have_a_rate_limit_for_the_directory(
    start_server: StartServer, peer: Peer
) -> None:
    server = await start_server(rate_limits={"directory": {"per_second": 0.001, "burst": 2}})

    answers = [await ask(server, peer, OF_SERVERS), await ask(server, peer, OF_SERVERS, {})]
    answers.append(await ask(server, peer, OF_SERVERS))

    assert [answer.status for answer in answers] == [200, 200, 429]
