"""Client-Server API, "Profiles"."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from tests.client_api.rooms import join, new_room, room_path, set_state, state_event
from tests.clients import Client
from tests.servers import RunningServer, StartServer, unique_name

AVATAR = "mxc://example.org/avatar"


def profile(user_id: str, *field: str) -> str:
    return "/".join(["/_matrix/client/v3/profile", *(quote(part, safe="") for part in (user_id, *field))])


async def set_field(client: Client, field: str, value: Any) -> None:
    answer = await client.put(profile(client.user_id, field), {field: value})
    assert (answer.status, answer.body) == (200, {})


async def member(client: Client, room_id: str, user: Client | None = None) -> dict[str, Any]:
    """The content of a user's member event."""
    user_id = (user or client).user_id
    content: dict[str, Any] = (await state_event(client, room_id, "m.room.member", user_id))["content"]
    return content


async def test_a_profile_is_open_to_everybody(server: RunningServer, alice: Client) -> None:
    await set_field(alice, "displayname", "Alice")
    await set_field(alice, "avatar_url", AVATAR)

    whole = await server.nobody.get(profile(alice.user_id))
    name = await server.nobody.get(profile(alice.user_id, "displayname"))

    assert (whole.status, whole.body) == (200, {"displayname": "Alice", "avatar_url": AVATAR})
    assert (name.status, name.body) == (200, {"displayname": "Alice"})


async def test_a_user_who_set_nothing_has_an_empty_profile(server: RunningServer, alice: Client) -> None:
    whole = await server.nobody.get(profile(alice.user_id))
    name = await server.nobody.get(profile(alice.user_id, "displayname"))

    assert (whole.status, whole.body) == (200, {})
    assert name.error == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("user_id", "error"),
    [
        ("@nobody-of-this-name:test", (404, "M_NOT_FOUND")),
        ("@broken", (400, "M_INVALID_PARAM")),
        ("broken:test", (400, "M_INVALID_PARAM")),
    ],
)
async def test_a_user_who_does_not_exist_has_no_profile(
    server: RunningServer, user_id: str, error: tuple[int, str]
) -> None:
    assert (await server.nobody.get(profile(user_id))).error == error
    assert (await server.nobody.get(profile(user_id, "displayname"))).error == error


async def test_a_deactivated_user_has_no_profile(server: RunningServer, alice: Client) -> None:
    await set_field(alice, "displayname", "Alice")
    await server.services.accounts.deactivate(alice.user_id)  # type: ignore[arg-type]

    assert (await server.nobody.get(profile(alice.user_id))).error == (404, "M_NOT_FOUND")


async def test_only_its_user_changes_a_profile(server: RunningServer, alice: Client, bob: Client) -> None:
    path = profile(alice.user_id, "displayname")

    assert (await bob.put(path, {"displayname": "Bob"})).error == (403, "M_FORBIDDEN")
    assert (await bob.delete(path)).error == (403, "M_FORBIDDEN")
    assert (await server.nobody.put(path, {"displayname": "Bob"})).error == (401, "M_MISSING_TOKEN")
    assert (await alice.get(path)).error == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("field", "body", "error"),
    [
        ("displayname", {}, (400, "M_MISSING_PARAM")),
        ("displayname", {"avatar_url": AVATAR}, (400, "M_MISSING_PARAM")),
        ("displayname", {"displayname": None}, (400, "M_BAD_JSON")),
        ("displayname", {"displayname": 7}, (400, "M_BAD_JSON")),
        ("displayname", {"displayname": "x" * 257}, (400, "M_INVALID_PARAM")),
        ("avatar_url", {"avatar_url": {"url": AVATAR}}, (400, "M_BAD_JSON")),
        ("avatar_url", {"avatar_url": "x" * 1001}, (400, "M_INVALID_PARAM")),
        ("m.tz", {"m.tz": 1}, (400, "M_BAD_JSON")),
        ("Upper", {"Upper": 1}, (400, "M_INVALID_PARAM")),
        ("1st", {"1st": 1}, (400, "M_INVALID_PARAM")),
        ("org.example.tée", {"org.example.tée": 1}, (400, "M_INVALID_PARAM")),
        ("a" * 256, {"a" * 256: 1}, (400, "M_KEY_TOO_LARGE")),
        ("é" * 200, {"é" * 200: 1}, (400, "M_KEY_TOO_LARGE")),
        ("org.example.big", {"org.example.big": 2**70}, (400, "M_BAD_JSON")),
        ("org.example.half", b'{"org.example.half": "\\ud800"}', (400, "M_BAD_JSON")),
        ("org.example.none", b"", (400, "M_NOT_JSON")),
    ],
)
async def test_what_cannot_be_in_a_profile_is_refused(
    alice: Client, field: str, body: Any, error: tuple[int, str]
) -> None:
    assert (await alice.put(profile(alice.user_id, field), body)).error == error
    assert (await alice.get(profile(alice.user_id))).body == {}


@pytest.mark.parametrize(
    "value", [None, True, 1.5, "", "tea \0 time", [], {"a": {"b": [None]}}, -(2**53)], ids=str
)
async def test_a_custom_field_has_any_value(alice: Client, value: Any) -> None:
    await set_field(alice, "org.example.tea-time_1", value)

    whole = await alice.get(profile(alice.user_id))
    field = await alice.get(profile(alice.user_id, "org.example.tea-time_1"))

    assert whole.body == field.body == {"org.example.tea-time_1": value}


async def test_a_key_of_255_bytes_is_allowed(alice: Client) -> None:
    await set_field(alice, "a" * 255, 1)


async def test_deleting_a_field_unsets_it(alice: Client) -> None:
    await set_field(alice, "m.tz", "Europe/Vienna")
    await set_field(alice, "org.example.tea", None)
    path = profile(alice.user_id, "org.example.tea")

    first, again = await alice.delete(path), await alice.delete(path)

    assert (first.status, again.status) == (200, 200)
    assert (await alice.get(path)).error == (404, "M_NOT_FOUND")
    assert (await alice.get(profile(alice.user_id))).body == {"m.tz": "Europe/Vienna"}
    assert (await alice.delete(profile(alice.user_id, "Upper"))).error == (400, "M_INVALID_PARAM")


async def test_a_profile_stays_below_64_kib(alice: Client) -> None:
    overhead = len('{"org.example.a":"","org.example.b":""}')
    await set_field(alice, "org.example.a", "x" * 30_000)
    path = profile(alice.user_id, "org.example.b")

    too_large = await alice.put(path, {"org.example.b": "y" * (65536 - 30_000 - overhead)})
    largest = await alice.put(path, {"org.example.b": "y" * (65535 - 30_000 - overhead)})

    assert too_large.error == (400, "M_PROFILE_TOO_LARGE")
    assert largest.status == 200
    await set_field(alice, "org.example.a", "")
    await set_field(alice, "org.example.c", 1)


async def test_fields_set_at_once_do_not_exceed_the_limit_together(alice: Client) -> None:
    fields = [f"org.example.{letter}" for letter in "abcdef"]

    answers = await asyncio.gather(
        *(alice.put(profile(alice.user_id, field), {field: "x" * 30_000}) for field in fields)
    )

    assert sorted(answer.status for answer in answers) == [200, 200, 400, 400, 400, 400]


async def test_a_new_name_and_avatar_reach_every_joined_room(alice: Client, bob: Client) -> None:
    rooms = [await new_room(alice), await new_room(alice), await new_room(bob)]
    await join(alice, rooms[2])
    left = await new_room(bob)
    await join(alice, left)
    await join(bob, rooms[0])
    await alice.post(room_path(left, "leave"), {})
    own = {"membership": "join", "reason": "tea", "org.example.hat": True}
    await set_state(alice, rooms[0], "m.room.member", own, alice.user_id)

    await set_field(alice, "displayname", "Alice")
    await set_field(alice, "avatar_url", AVATAR)

    said = {"displayname": "Alice", "avatar_url": AVATAR}
    assert await member(alice, rooms[0]) == {**own, **said}
    assert await member(alice, rooms[1]) == {"membership": "join", **said}
    assert await member(bob, rooms[2], alice) == {"membership": "join", **said}
    assert await member(bob, left, alice) == {"membership": "leave"}
    assert await member(alice, rooms[0], bob) == {"membership": "join"}


async def test_an_unset_name_leaves_member_events(alice: Client) -> None:
    await set_field(alice, "displayname", "Alice")
    await set_field(alice, "avatar_url", AVATAR)
    room_id = await new_room(alice)

    await alice.delete(profile(alice.user_id, "avatar_url"))
    await set_field(alice, "displayname", "")

    assert await member(alice, room_id) == {"membership": "join"}
    name = await alice.get(profile(alice.user_id, "displayname"))
    assert (name.status, name.body) == (200, {"displayname": ""})


async def test_a_profile_that_stays_sends_nothing(alice: Client) -> None:
    await set_field(alice, "displayname", "Alice")
    room_id = await new_room(alice)
    before = await state_event(alice, room_id, "m.room.member", alice.user_id)

    await set_field(alice, "displayname", "Alice")
    await set_field(alice, "org.example.tea", "green")

    after = await state_event(alice, room_id, "m.room.member", alice.user_id)
    assert before["event_id"] == after["event_id"]


async def test_who_entered_by_a_restricted_rule_can_change_the_name(alice: Client, bob: Client) -> None:
    lobby = await new_room(alice)
    await join(bob, lobby)
    allow = [{"type": "m.room_membership", "room_id": lobby}]
    rule = {"type": "m.room.join_rules", "content": {"join_rule": "restricted", "allow": allow}}
    room_id = await new_room(alice, initial_state=[rule])
    await join(bob, room_id)
    assert "join_authorised_via_users_server" in await member(bob, room_id)

    await set_field(bob, "displayname", "Bob")

    assert await member(bob, room_id) == {"membership": "join", "displayname": "Bob"}


async def test_a_room_that_refuses_does_not_stop_the_others(
    alice: Client, bob: Client, caplog: pytest.LogCaptureFixture
) -> None:
    rooms = [await new_room(alice) for _ in range(3)]
    refusing = rooms[1]
    filler = "x" * 64_000
    own = {"membership": "join", "org.example.filler": filler}
    await set_state(alice, refusing, "m.room.member", own, alice.user_id)

    await set_field(alice, "avatar_url", "mxc://" + "y" * 990)
    await set_field(alice, "displayname", "A" * 256)

    for room_id in (rooms[0], rooms[2]):
        assert (await member(alice, room_id))["displayname"] == "A" * 256
    assert "displayname" not in await member(alice, refusing)
    assert f"{refusing} does not learn of the new profile of {alice.user_id}" in caplog.text


async def test_names_set_at_once_leave_all_rooms_with_the_last(alice: Client) -> None:
    rooms = [await new_room(alice) for _ in range(5)]
    path = profile(alice.user_id, "displayname")

    await asyncio.gather(*(alice.put(path, {"displayname": f"Alice {number}"}) for number in range(8)))

    name = (await alice.get(path)).body["displayname"]
    for room_id in rooms:
        assert (await member(alice, room_id))["displayname"] == name


async def test_new_rooms_and_invites_carry_the_profile(alice: Client, bob: Client) -> None:
    await set_field(alice, "displayname", "Alice")
    await set_field(bob, "displayname", "Bob")

    room_id = await new_room(alice, invite=[bob.user_id])

    assert await member(alice, room_id) == {"membership": "join", "displayname": "Alice"}
    assert await member(alice, room_id, bob) == {"membership": "invite", "displayname": "Bob"}
    await join(bob, room_id)
    assert await member(alice, room_id, bob) == {"membership": "join", "displayname": "Bob"}


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_changes_of_a_profile_have_a_rate_limit(start_server: StartServer) -> None:
    server = await start_server(rate_limits={"profile": {"per_second": 0.001, "burst": 2}})
    alice = await server.nobody.register(unique_name())
    path = profile(alice.user_id, "displayname")

    statuses = [(await alice.put(path, {"displayname": f"Alice {n}"})).status for n in range(3)]

    assert statuses == [200, 200, 429]
    assert (await alice.delete(path)).error == (429, "M_LIMIT_EXCEEDED")
