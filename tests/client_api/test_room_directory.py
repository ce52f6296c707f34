"""Client-Server API, "Room aliases", "m.room.canonical_alias"."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from tests.client_api.rooms import join, new_room, room_path, set_state, state_event
from tests.clients import Client, Response
from tests.servers import RunningServer, StartServer, unique_name

CANONICAL_ALIAS = "m.room.canonical_alias"
UNKNOWN_ROOM = "!" + "a" * 43


def new_alias(name: str = "tea") -> str:
    return f"#{unique_name(name)}:test"


def directory(alias: str) -> str:
    return f"/_matrix/client/v3/directory/room/{quote(alias, safe='')}"


def listing(room_id: str) -> str:
    return f"/_matrix/client/v3/directory/list/room/{quote(room_id, safe='')}"


def state(room_id: str) -> str:
    return room_path(room_id, "state", CANONICAL_ALIAS)


async def add_alias(client: Client, room_id: str, alias: str | None = None) -> str:
    alias = alias or new_alias()
    answer = await client.put(directory(alias), {"room_id": room_id})
    assert (answer.status, answer.body) == (200, {})
    return alias


async def canonical(client: Client, room_id: str) -> dict[str, Any]:
    content: dict[str, Any] = (await state_event(client, room_id, CANONICAL_ALIAS))["content"]
    return content


async def test_an_alias_leads_everybody_to_its_room(server: RunningServer, alice: Client) -> None:
    room_id = await new_room(alice)
    alias = await add_alias(alice, room_id)

    answer = await server.nobody.get(directory(alias))

    assert (answer.status, answer.body) == (200, {"room_id": room_id, "servers": ["test"]})


async def test_an_alias_is_taken_only_once(alice: Client, bob: Client) -> None:
    alias = await add_alias(alice, await new_room(alice))

    again = await bob.put(directory(alias), {"room_id": await new_room(bob)})

    assert again.error == (409, "M_UNKNOWN")


async def test_of_those_who_want_an_alias_at_once_one_gets_it(alice: Client) -> None:
    rooms = [await new_room(alice) for _ in range(4)]
    alias = new_alias()

    answers = await asyncio.gather(*(alice.put(directory(alias), {"room_id": room_id}) for room_id in rooms))

    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]


async def test_a_room_can_be_joined_by_its_alias(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    alias = await add_alias(alice, room_id)

    answer = await bob.post(f"/_matrix/client/v3/join/{quote(alias)}", {})
    unknown = await bob.post(f"/_matrix/client/v3/join/{quote(new_alias())}", {})

    assert (answer.status, answer.body) == (200, {"room_id": room_id})
    assert unknown.error == (404, "M_NOT_FOUND")


@pytest.mark.parametrize("name", ["老虎£я", "tea/time", "tea time?%", "#tea", "TEA", "🍵"])
async def test_an_alias_has_nearly_any_characters(alice: Client, name: str) -> None:
    room_id = await new_room(alice)
    alias = await add_alias(alice, room_id, new_alias(name))

    assert (await alice.get(directory(alias))).body["room_id"] == room_id
    assert (await alice.get(room_path(room_id, "aliases"))).body == {"aliases": [alias]}


@pytest.mark.parametrize("alias", ["#tea", "tea:test", "#:test", "#tea:test:port", "#" + "x" * 255 + ":test"])
async def test_what_is_no_alias_is_refused(alice: Client, alias: str) -> None:
    room_id = await new_room(alice)

    assert (await alice.get(directory(alias))).error == (400, "M_INVALID_PARAM")
    assert (await alice.put(directory(alias), {"room_id": room_id})).error == (400, "M_INVALID_PARAM")
    assert (await alice.delete(directory(alias))).error == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({}, "M_MISSING_PARAM"),
        ({"room_id": 1}, "M_BAD_JSON"),
        ({"room_id": "tea"}, "M_INVALID_PARAM"),
        ({"room_id": "!tea"}, "M_INVALID_PARAM"),
    ],
)
async def test_an_alias_needs_a_room_id(alice: Client, body: Any, errcode: str) -> None:
    assert (await alice.put(directory(new_alias()), body)).error == (400, errcode)


async def test_aliases_of_other_servers_are_theirs(alice: Client) -> None:
    room_id = await new_room(alice)
    path = directory("#tea:elsewhere.example")

    assert (await alice.put(path, {"room_id": room_id})).error == (400, "M_INVALID_PARAM")
    assert (await alice.delete(path)).error == (404, "M_NOT_FOUND")


async def test_only_users_change_aliases(server: RunningServer, alice: Client) -> None:
    alias = await add_alias(alice, await new_room(alice))

    assert (await server.nobody.put(directory(alias), {"room_id": UNKNOWN_ROOM})).status == 401
    assert (await server.nobody.delete(directory(alias))).status == 401
    assert (await server.nobody.get(room_path(UNKNOWN_ROOM, "aliases"))).status == 401


async def test_who_may_know_of_a_room_gives_it_an_alias(start_server: StartServer) -> None:
    server = await start_server()
    strict = await start_server(rooms={"aliases_need_membership": True})
    alice = await server.nobody.register(unique_name())
    bob = await server.nobody.register(unique_name())
    room_id = await new_room(alice)

    outside = await strict.nobody.as_user(bob).put(directory(new_alias()), {"room_id": room_id})
    await add_alias(bob, room_id)
    await join(bob, room_id)
    await add_alias(strict.nobody.as_user(bob), room_id)

    assert outside.error == (403, "M_FORBIDDEN")


@pytest.mark.invariant("SEC-VIS-4")
async def test_sec_vis_4_a_stranger_learns_nothing_of_a_private_room(alice: Client, bob: Client) -> None:
    private = await new_room(alice, preset="private_chat")
    await add_alias(alice, private)

    async def put_alias(room_id: str) -> Response:
        return await bob.put(directory(new_alias()), {"room_id": room_id})

    async def list_aliases(room_id: str) -> Response:
        return await bob.get(room_path(room_id, "aliases"))

    async def name_alias(room_id: str) -> Response:
        return await bob.put(state(room_id), {"alias": new_alias()})

    for ask in (put_alias, list_aliases, name_alias):
        answers = [await ask(room_id) for room_id in (private, UNKNOWN_ROOM)]
        assert [answer.error for answer in answers] == [(403, "M_FORBIDDEN")] * 2


async def test_members_and_readers_see_the_aliases_of_a_room(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    empty = await alice.get(room_path(room_id, "aliases"))
    aliases = sorted([await add_alias(alice, room_id), await add_alias(alice, room_id)])

    assert (empty.status, empty.body) == (200, {"aliases": []})
    assert (await alice.get(room_path(room_id, "aliases"))).body == {"aliases": aliases}
    assert (await bob.get(room_path(room_id, "aliases"))).error == (403, "M_FORBIDDEN")
    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    assert (await bob.get(room_path(room_id, "aliases"))).body == {"aliases": aliases}


async def test_creators_and_moderators_and_admins_delete_an_alias(start_server: StartServer) -> None:
    server = await start_server()
    alice = await server.nobody.register(unique_name())
    bob = await server.nobody.register(unique_name())
    carol = await server.nobody.register(unique_name())
    name = unique_name("admin")
    await server.services.accounts.create(name, "tea for two", is_admin=True)
    admin = await server.nobody.log_in(
        Client(server.http, server.url, user_id=f"@{name}:test", password="tea for two")
    )
    room_id = await new_room(alice)
    for member in (bob, carol):
        await join(member, room_id)
    aliases = [await add_alias(bob, room_id) for _ in range(3)]

    refused = await carol.delete(directory(aliases[0]))
    deleted = [
        await client.delete(directory(alias))
        for client, alias in zip((bob, alice, admin), aliases, strict=True)
    ]
    again = await bob.delete(directory(aliases[0]))

    assert refused.error == (403, "M_FORBIDDEN")
    assert [(answer.status, answer.body) for answer in deleted] == [(200, {})] * 3
    assert again.error == (404, "M_NOT_FOUND")
    assert (await alice.get(room_path(room_id, "aliases"))).body == {"aliases": []}


async def test_a_stranger_of_high_level_cannot_delete_an_alias(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice, power_level_content_override={"users": {bob.user_id: 100}})
    alias = await add_alias(alice, room_id)

    assert (await bob.delete(directory(alias))).error == (403, "M_FORBIDDEN")
    await join(bob, room_id)
    assert (await bob.delete(directory(alias))).status == 200


async def test_a_deleted_alias_leaves_what_the_room_names(alice: Client) -> None:
    room_id = await new_room(alice)
    first, second, third = [await add_alias(alice, room_id) for _ in range(3)]
    content = {"alias": first, "alt_aliases": [second, first, third], "org.example.tea": 1}
    await set_state(alice, room_id, CANONICAL_ALIAS, content)

    await alice.delete(directory(first))
    assert await canonical(alice, room_id) == {"alt_aliases": [second, third], "org.example.tea": 1}
    await set_state(alice, room_id, CANONICAL_ALIAS, {"alt_aliases": [second, third]})
    await alice.delete(directory(third))
    assert await canonical(alice, room_id) == {"alt_aliases": [second]}
    await alice.delete(directory(second))
    assert await canonical(alice, room_id) == {}


async def test_who_has_no_power_deletes_the_alias_alone(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)
    alias = await add_alias(bob, room_id)
    await set_state(alice, room_id, CANONICAL_ALIAS, {"alias": alias})

    answer = await bob.delete(directory(alias))

    assert answer.status == 200
    assert await canonical(alice, room_id) == {"alias": alias}
    assert (await bob.get(directory(alias))).error == (404, "M_NOT_FOUND")


async def test_a_room_names_only_aliases_of_its_own(alice: Client) -> None:
    room_id = await new_room(alice)
    own = await add_alias(alice, room_id)
    foreign = await add_alias(alice, await new_room(alice))
    gone = await add_alias(alice, room_id)
    await alice.delete(directory(gone))

    for wrong in (foreign, gone, new_alias(), "#tea:elsewhere.example"):
        assert (await alice.put(state(room_id), {"alias": wrong})).error == (400, "M_BAD_ALIAS")
        alternatives = {"alias": own, "alt_aliases": [own, wrong]}
        assert (await alice.put(state(room_id), alternatives)).error == (400, "M_BAD_ALIAS")
    await set_state(alice, room_id, CANONICAL_ALIAS, {"alias": own, "alt_aliases": [own]})


@pytest.mark.parametrize(
    "content",
    [
        {"alias": "%tea:test"},
        {"alias": "#tea"},
        {"alias": 7},
        {"alias": {}},
        {"alt_aliases": "#tea:test"},
        {"alt_aliases": {}},
        {"alt_aliases": ["tea"]},
        {"alt_aliases": [None]},
        {"alt_aliases": [["#tea:test"]]},
    ],
)
async def test_what_is_no_alias_cannot_be_named(alice: Client, content: dict[str, Any]) -> None:
    room_id = await new_room(alice)

    assert (await alice.put(state(room_id), content)).error == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("content", [{}, {"alias": ""}, {"alias": None}, {"alt_aliases": []}])
async def test_a_room_may_name_no_alias(alice: Client, content: dict[str, Any]) -> None:
    room_id = await new_room(alice)

    await set_state(alice, room_id, CANONICAL_ALIAS, content)

    assert await canonical(alice, room_id) == content


async def test_aliases_that_a_room_names_already_are_not_checked_again(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)
    old, new = await add_alias(bob, room_id), await add_alias(alice, room_id)
    await set_state(alice, room_id, CANONICAL_ALIAS, {"alias": old})
    await bob.delete(directory(old))

    await set_state(alice, room_id, CANONICAL_ALIAS, {"alias": new, "alt_aliases": [old]})

    assert await canonical(alice, room_id) == {"alias": new, "alt_aliases": [old]}


async def test_the_auth_rules_come_before_the_aliases(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)

    assert (await bob.put(state(room_id), {"alias": new_alias()})).error == (403, "M_FORBIDDEN")


async def test_the_visibility_of_a_room_can_be_set_and_read(server: RunningServer, alice: Client) -> None:
    room_id = await new_room(alice)
    seen = []
    for body in (None, {"visibility": "public"}, {"visibility": "private"}, {}):
        if body is not None:
            answer = await alice.put(listing(room_id), body)
            assert (answer.status, answer.body) == (200, {})
        seen.append((await server.nobody.get(listing(room_id))).body["visibility"])

    assert seen == ["private", "public", "private", "public"]
    published = await new_room(alice, visibility="public")
    assert (await server.nobody.get(listing(published))).body == {"visibility": "public"}


async def test_the_visibility_of_a_room_is_not_everybodys(
    server: RunningServer, alice: Client, bob: Client
) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)

    assert (await bob.put(listing(room_id), {"visibility": "public"})).error == (403, "M_FORBIDDEN")
    assert (await alice.put(listing(room_id), {"visibility": "tea"})).error == (400, "M_INVALID_PARAM")
    assert (await alice.put(listing(room_id), {"visibility": 1})).status == 400
    assert (await server.nobody.put(listing(room_id), {})).error == (401, "M_MISSING_TOKEN")
    for client in (server.nobody, alice):
        assert (await client.get(listing(UNKNOWN_ROOM))).error == (404, "M_NOT_FOUND")
    assert (await alice.put(listing(UNKNOWN_ROOM), {})).error == (404, "M_NOT_FOUND")
    assert (await alice.get(listing(room_id))).body == {"visibility": "private"}


async def test_the_configuration_says_who_may_publish(start_server: StartServer) -> None:
    server = await start_server()
    name = unique_name("admin")
    await server.services.accounts.create(name, "tea for two", is_admin=True)
    admin = await server.nobody.log_in(
        Client(server.http, server.url, user_id=f"@{name}:test", password="tea for two")
    )
    alice = await server.nobody.register(unique_name())
    room_id = await new_room(alice)
    statuses = {}
    for publishers in ("nobody", "admins"):
        other = await start_server(rooms={"publish_to_directory": publishers})
        for client in (alice, admin):
            there = other.nobody.as_user(client)
            statuses[publishers, client is admin] = (
                (await there.put(listing(room_id), {})).status,
                (await there.post("/_matrix/client/v3/createRoom", {"visibility": "public"})).status,
                (await there.put(listing(room_id), {"visibility": "private"})).status,
            )

    assert statuses == {
        ("nobody", False): (403, 403, 200),
        ("nobody", True): (403, 403, 200),
        ("admins", False): (403, 403, 200),
        ("admins", True): (200, 200, 200),
    }


async def test_guests_have_no_say_about_the_directory(start_server: StartServer) -> None:
    server = await start_server(registration={"enabled": True, "require_token": False, "guests": True})
    alice = await server.nobody.register(unique_name())
    guest = await server.nobody.post("/_matrix/client/v3/register", {}, {"kind": "guest"})
    client = server.nobody.with_token(guest.body["access_token"])
    room_id = await new_room(alice)

    for answer in (
        await client.put(listing(room_id), {}),
        await client.put(directory(new_alias()), {"room_id": room_id}),
    ):
        assert answer.error == (403, "M_GUEST_ACCESS_FORBIDDEN")
