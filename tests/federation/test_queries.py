"""Aliases and profiles of other servers, and what other servers ask us of ours."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import orjson
import pytest
from aiohttp import web

from federation.outbound.requests import MAX_PROFILE_BYTES
from homeserver.protocol.identifiers import ServerName, server_name_of
from homeserver.services.room_directory import MAX_SERVERS
from tests.client_api.rooms import join, new_room
from tests.clients import Client
from tests.federation.homeservers import DENIED, NOBODY_THERE, ask, name_of, new_word
from tests.federation.peers import Peer, json_answer
from tests.servers import RunningServer, StartServer, unique_name

QUERY = "/_matrix/federation/v1/query"
DIRECTORY, PROFILE = f"{QUERY}/directory", f"{QUERY}/profile"
UNKNOWN_ROOM = "!" + "a" * 43

NOT_FOUND, FORBIDDEN = (404, "M_NOT_FOUND"), (403, "M_FORBIDDEN")
INVALID, NO_ANSWER = (400, "M_INVALID_PARAM"), (502, "M_UNKNOWN")


def directory(alias: str) -> str:
    return f"/_matrix/client/v3/directory/room/{quote(alias, safe='')}"


def profile(user_id: str, *field: str) -> str:
    return "/".join(["/_matrix/client/v3/profile", *(quote(part, safe="") for part in (user_id, *field))])


def alias_query(alias: str) -> str:
    return f"{DIRECTORY}?room_alias={quote(alias, safe='')}"


def profile_query(user_id: str, field: str | None = None) -> str:
    query = f"{PROFILE}?user_id={quote(user_id, safe='')}"
    return query if field is None else f"{query}&field={quote(field, safe='')}"


async def new_alias(creator: Client, server: RunningServer, name: str = "tea") -> tuple[str, str]:
    """A room's ID, and an alias of it."""
    room_id, alias = await new_room(creator), f"#{unique_name(name)}:{name_of(server)}"
    answer = await creator.put(directory(alias), {"room_id": room_id})
    assert answer.status == 200, answer.body
    return room_id, alias


async def set_field(client: Client, field: str, value: Any) -> None:
    assert (await client.put(profile(client.user_id, field), {field: value})).status == 200


@pytest.mark.parametrize("name", ["tea", "老虎£я/+ &%?"])
async def test_an_alias_of_another_server_leads_to_its_room(
    here: RunningServer, there: RunningServer, bob: Client, name: str
) -> None:
    room_id, alias = await new_alias(bob, there, name)

    found = await here.nobody.get(directory(alias))
    unknown = await here.nobody.get(directory(f"#{new_word()}:{name_of(there)}"))

    assert (found.status, found.body) == (200, {"room_id": room_id, "servers": [name_of(there)]})
    assert unknown.error == NOT_FOUND


async def test_joining_by_an_alias_of_another_server_finds_its_room(
    there: RunningServer, alice: Client, bob: Client
) -> None:
    room_id, alias = await new_alias(bob, there)

    answer = await alice.post(f"/_matrix/client/v3/join/{quote(alias, safe='')}", {})
    unknown = await alice.post(
        f"/_matrix/client/v3/join/{quote('#' + new_word() + ':' + name_of(there))}", {}
    )

    assert (answer.status, answer.body) == (200, {"room_id": room_id})
    assert unknown.error == NOT_FOUND


async def test_an_alias_of_another_server_may_be_of_a_room_that_is_here(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    bob = await here.nobody.register(unique_name("bob"))
    room_id = await new_room(bob)
    peer.answers[DIRECTORY] = lambda: json_answer({"room_id": room_id, "servers": [name_of(here)]})

    answer = await alice.post(f"/_matrix/client/v3/join/{quote(f'#tea:{peer.name}')}", {})

    assert (answer.status, answer.body) == (200, {"room_id": room_id})


async def test_servers_of_a_room_are_told_those_with_the_most_members_first(
    here: RunningServer, there: RunningServer, peer: Peer, bob: Client
) -> None:
    room_id, alias = await new_alias(bob, there)
    carol = await there.nobody.register(unique_name("carol"))
    await join(carol, room_id)
    await carol.post(f"/_matrix/client/v3/rooms/{quote(room_id)}/leave", {})
    users = ["@a:tea.test:1", "@b:tea.test:1", "@c:tea.test:1", "@a:[::1]", "@b:[::1]"]
    users += [f"@a:s{number:03}.test" for number in range(MAX_SERVERS)]
    services = there.services.room_directory
    atoms = services.dictionaries.atoms
    nids = [await atoms.nid(user_id) for user_id in users]
    server_nids = [await atoms.nid(server_name_of(user_id)) for user_id in users]
    async with services.database.connection() as tx:
        query = """
            INSERT INTO memberships (user_nid, room_nid, server_nid, membership, event_nid, pos)
            SELECT unnest($1::bigint[]), room_nid, unnest($2::bigint[]), membership, event_nid, pos
            FROM memberships JOIN rooms ON rooms.nid = room_nid WHERE room_id = $3 AND membership = 1
        """
        await tx.execute(query, nids, server_nids, room_id)

    told = await ask(there, peer, alias_query(alias))
    looked_up = await here.nobody.get(directory(alias))

    assert told.body == looked_up.body
    servers = told.body["servers"]
    assert servers[:4] == [name_of(there), "tea.test:1", "[::1]", "s000.test"]
    assert len(servers) == MAX_SERVERS


async def test_a_profile_of_another_server_is_what_it_says(here: RunningServer, bob: Client) -> None:
    fields = {"displayname": "Bob ✓", "avatar_url": "mxc://tea/1", "m.tz": "Europe/Vienna"}
    fields["org.example.tea"] = {"sorts": [1, 2.5, None]}  # type: ignore[assignment]
    for field, value in fields.items():
        await set_field(bob, field, value)

    whole = await here.nobody.get(profile(bob.user_id))
    name = await here.nobody.get(profile(bob.user_id, "displayname"))
    unset = await here.nobody.get(profile(bob.user_id, "org.example.coffee"))

    assert (whole.status, whole.body) == (200, fields)
    assert (name.status, name.body) == (200, {"displayname": "Bob ✓"})
    assert unset.error == NOT_FOUND


async def test_a_user_of_another_server_who_set_nothing_has_an_empty_profile(
    here: RunningServer, there: RunningServer, bob: Client
) -> None:
    empty = await here.nobody.get(profile(bob.user_id))
    unknown = f"@{new_word()}:{name_of(there)}"

    assert (empty.status, empty.body) == (200, {})
    assert (await here.nobody.get(profile(unknown))).error == NOT_FOUND
    assert (await here.nobody.get(profile(unknown, "displayname"))).error == NOT_FOUND


async def test_other_servers_ask_for_a_profile_or_a_field_of_it(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    await set_field(alice, "displayname", "Alice")
    await set_field(alice, "avatar_url", "mxc://tea/1")

    answers = [
        await ask(here, peer, profile_query(alice.user_id, field))
        for field in (None, "displayname", "m.tz", "No Field")
    ]

    assert [(answer.status, answer.body) for answer in answers] == [
        (200, {"displayname": "Alice", "avatar_url": "mxc://tea/1"}),
        (200, {"displayname": "Alice"}),
        (200, {}),
        (200, {}),
    ]


@pytest.mark.invariant("SEC-VIS-4")
async def test_sec_vis_4_a_user_who_may_not_be_seen_is_like_one_who_does_not_exist(
    here: RunningServer, peer: Peer, alice: Client, bob: Client
) -> None:
    await set_field(alice, "displayname", "Alice")
    await here.services.accounts.deactivate(alice.user_id)  # type: ignore[arg-type]
    users = [alice.user_id, f"@{new_word()}:{name_of(here)}", bob.user_id, f"@tea:{peer.name}"]

    for field in (None, "displayname"):
        answers = [await ask(here, peer, profile_query(user_id, field)) for user_id in users]
        assert [answer.error for answer in answers] == [NOT_FOUND] * len(users)
        told = {answer.body["error"].replace(user, "") for answer, user in zip(answers, users, strict=True)}
        assert len(told) == 1


async def test_what_is_of_other_servers_is_not_asked_for_on_behalf_of_a_third(
    here: RunningServer, there: RunningServer, peer: Peer, bob: Client
) -> None:
    _, alias = await new_alias(bob, there)

    for uri in (alias_query(alias), alias_query(f"#tea:{peer.name}"), profile_query(bob.user_id)):
        assert (await ask(here, peer, uri)).error == NOT_FOUND
    assert {received.target.partition("?")[0] for received in peer.server.received} == {
        "/_matrix/key/v2/server"
    }


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        (DIRECTORY, (400, "M_MISSING_PARAM")),
        (PROFILE, (400, "M_MISSING_PARAM")),
        (alias_query("tea"), INVALID),
        (alias_query("#tea:local host"), INVALID),
        (profile_query("@user1:localhost:http"), INVALID),
        (profile_query("user1:localhost"), INVALID),
        (f"{QUERY}/tea", (404, "M_UNRECOGNIZED")),
    ],
)
async def test_what_is_no_question_is_refused(
    here: RunningServer, peer: Peer, uri: str, error: tuple[int, str]
) -> None:
    assert (await ask(here, peer, uri)).error == error


async def test_questions_of_other_servers_are_signed(start_server: StartServer) -> None:
    server = await start_server()
    for uri in (alias_query("#tea:test"), profile_query("@tea:test"), f"{QUERY}/tea"):
        assert (await server.nobody.get(uri)).error == (401, "M_UNAUTHORIZED")


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"room_id": UNKNOWN_ROOM},
        {"room_id": UNKNOWN_ROOM, "servers": "tea.test"},
        {"room_id": UNKNOWN_ROOM, "servers": {"tea.test": 1}},
        {"room_id": None, "servers": []},
        {"room_id": ["!tea:tea.test"], "servers": []},
        {"room_id": "#tea:tea.test", "servers": []},
        {"room_id": "!" + "a" * 300 + ":tea.test", "servers": []},
        {"errcode": "M_NOT_FOUND"},
        [],
    ],
)
async def test_an_answer_for_an_alias_that_is_malformed_is_none(
    here: RunningServer, peer: Peer, answer: Any
) -> None:
    peer.answers[DIRECTORY] = lambda: json_answer(answer)

    assert (await here.nobody.get(directory(f"#tea:{peer.name}"))).error == NO_ANSWER


@pytest.mark.parametrize(
    ("servers", "told"),
    [
        (["tea.test", 1, None, {}, ["x.test"], "", "a b", "tea.test", "[::1]:1"], ["tea.test", "[::1]:1"]),
        ([f"s{n}.test" for n in range(30_000)], [f"s{n}.test" for n in range(MAX_SERVERS)]),
        ([], None),
        (["/"], None),
    ],
    ids=["odd", "many", "none", "none that is one"],
)  # fmt: skip
async def test_of_the_servers_of_an_alias_only_those_that_can_be_are_told(
    here: RunningServer, peer: Peer, servers: list[Any], told: list[str] | None
) -> None:
    peer.answers[DIRECTORY] = lambda: json_answer({"room_id": UNKNOWN_ROOM, "servers": servers, "x": {}})

    answer = await here.nobody.get(directory(f"#tea:{peer.name}"))

    assert (answer.status, answer.body) == (200, {"room_id": UNKNOWN_ROOM, "servers": told or [peer.name]})


async def test_of_a_profile_only_fields_that_can_be_are_told(here: RunningServer, peer: Peer) -> None:
    body = orjson.dumps(
        {
            "displayname": {"a": "Mallory"},
            "avatar_url": ["mxc://tea/1"],
            "m.tz": 1,
            "org.example.null": None,
            "org.example.deep": {"a": [{"b": 1.5}]},
            "Upper": "x",
            "a" * 256: "x",
            "": "x",
            "é": "x",
        }
    )
    body = body[:-1] + b',"org.example.huge":[' + b"9" * 100 + b"]}"
    peer.answers[PROFILE] = lambda: web.Response(body=body)
    user_id = f"@tea:{peer.name}"

    whole = await here.nobody.get(profile(user_id))

    assert (whole.status, whole.body) == (200, {"org.example.deep": {"a": [{"b": 1.5}]}})
    for field in ("displayname", "avatar_url", "m.tz", "org.example.null", "org.example.huge", "errcode"):
        assert (await here.nobody.get(profile(user_id, field))).error == NOT_FOUND


async def test_a_profile_that_is_too_large_is_none(here: RunningServer, peer: Peer) -> None:
    peer.answers[PROFILE] = lambda: json_answer({"displayname": "x" * MAX_PROFILE_BYTES})

    assert (await here.nobody.get(profile(f"@tea:{peer.name}"))).error == NO_ANSWER


async def test_a_field_that_cannot_be_is_not_asked_for(here: RunningServer, peer: Peer) -> None:
    user_id = f"@tea:{peer.name}"

    assert (await here.nobody.get(profile(user_id, "Upper"))).error == INVALID
    assert (await here.nobody.get(profile(user_id, "a" * 256))).error == (400, "M_KEY_TOO_LARGE")
    assert peer.server.received == []


@pytest.mark.parametrize(
    ("status", "errcode", "error"),
    [
        (404, "M_NOT_FOUND", NOT_FOUND),
        (404, "M_UNKNOWN", NOT_FOUND),
        (404, "M_UNRECOGNIZED", NO_ANSWER),
        (404, "", NO_ANSWER),
        (403, "M_FORBIDDEN", FORBIDDEN),
        (400, "M_INVALID_PARAM", NO_ANSWER),
        (401, "M_UNAUTHORIZED", NO_ANSWER),
        (429, "M_LIMIT_EXCEEDED", NO_ANSWER),
        (500, "M_UNKNOWN", NO_ANSWER),
        (302, "M_NOT_FOUND", NO_ANSWER),
    ],
)
async def test_a_refusal_of_another_server_is_told_in_our_words(
    here: RunningServer, peer: Peer, status: int, errcode: str, error: tuple[int, str]
) -> None:
    for path in (DIRECTORY, PROFILE):
        peer.answers[path] = lambda: json_answer({"errcode": errcode, "error": "<b>tea</b>"}, status)
    for ask_for in (
        directory(f"#tea:{peer.name}"),
        profile(f"@tea:{peer.name}"),
        profile(f"@tea:{peer.name}", "displayname"),
    ):
        await here.services.destinations.succeeded(peer.name)
        answer = await here.nobody.get(ask_for)
        assert answer.error == error
        assert "<b>" not in answer.body["error"]


async def test_a_server_that_cannot_be_reached_is_502(here: RunningServer, peer: Peer) -> None:
    for name in (NOBODY_THERE, ServerName("192.0.2.1:1")):
        assert (await here.nobody.get(directory(f"#tea:{name}"))).error == NO_ANSWER
        assert (await here.nobody.get(profile(f"@tea:{name}"))).error == NO_ANSWER
    await here.services.destinations.failed(peer.name, 0)
    assert (await here.nobody.get(profile(f"@tea:{peer.name}"))).error == NO_ANSWER
    assert peer.server.received == []


async def test_a_server_that_we_do_not_talk_to_is_not_asked(
    here: RunningServer, start_server: StartServer
) -> None:
    alone = await start_server(federation={"enabled": False})

    assert (await here.nobody.get(directory(f"#tea:{DENIED}"))).error == FORBIDDEN
    assert (await here.nobody.get(profile(f"@tea:{DENIED}"))).error == FORBIDDEN
    assert (await alone.nobody.get(directory(f"#tea:{NOBODY_THERE}"))).error == FORBIDDEN
    assert (await alone.nobody.get(profile(f"@tea:{NOBODY_THERE}"))).error == FORBIDDEN


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_questions_to_and_from_other_servers_have_a_rate_limit(
    start_server: StartServer, peer: Peer
) -> None:
    server = await start_server(rate_limits={"lookup": {"per_second": 0.001, "burst": 3}})
    peer.answers[PROFILE] = lambda: json_answer({})
    elsewhere = f"@tea:{peer.name}"

    asked = [await server.nobody.get(profile(elsewhere, *field)) for field in ((), (), ("m.tz",), ())]
    alias = await server.nobody.get(directory(f"#tea:{peer.name}"))
    answered = [await ask(server, peer, profile_query("@tea:test")) for _ in range(2)]
    answered += [await ask(server, peer, alias_query("#tea:test")) for _ in range(2)]

    assert [answer.status for answer in asked] == [200, 200, 404, 429]
    assert alias.status == 429
    assert [answer.status for answer in answered] == [404, 404, 404, 429]
    assert (await server.nobody.get(profile("@tea:test"))).error == NOT_FOUND
