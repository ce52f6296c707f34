"""Client-Server API, sections "Joining rooms", "Leaving rooms" and "Banning users in a room"."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.client_api.rooms import join, new_room, room_path, set_state
from tests.clients import Client, Response
from tests.room_versions import versions_with_restricted_joins
from tests.servers import RunningServer, StartServer, unique_name

UNKNOWN_ROOM = "!unknown:test"


@pytest.fixture
async def carol(server: RunningServer) -> Client:
    """Somebody who is in no room."""
    return await server.nobody.register(unique_name("carol"))


async def change(client: Client, room_id: str, what: str, target: Client | None = None) -> Response:
    return await client.post(room_path(room_id, what), {} if target is None else {"user_id": target.user_id})


async def put_member(client: Client, room_id: str, user_id: str, content: dict[str, Any]) -> Response:
    return await client.put(room_path(room_id, "state", "m.room.member", user_id), content)


async def member_event(client: Client, room_id: str, user_id: str) -> dict[str, Any]:
    path = room_path(room_id, "state", "m.room.member", user_id)
    answer = await client.get(path, {"format": "event"})
    assert answer.status == 200, answer.body
    event: dict[str, Any] = answer.body
    return event


async def restricted_room(alice: Client, gate: str, version: str, **wanted: Any) -> str:
    """A room of alice that the members of another room may join."""
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": gate}]}
    rules = [{"type": "m.room.join_rules", "content": rule}]
    return await new_room(alice, room_version=version, initial_state=rules, **wanted)


async def test_joining_what_does_not_exist_is_404(alice: Client) -> None:
    for what in (UNKNOWN_ROOM, "!unknown:elsewhere", "#unknown:test"):
        answer = await alice.post(f"/_matrix/client/v3/join/{quote(what, safe='')}", {})
        assert answer.error == (404, "M_NOT_FOUND")
    assert (await change(alice, UNKNOWN_ROOM, "join")).error == (404, "M_NOT_FOUND")


async def test_joining_twice_makes_one_event(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)
    first = await member_event(bob, room_id, bob.user_id)
    await join(bob, room_id)

    assert (await member_event(bob, room_id, bob.user_id))["event_id"] == first["event_id"]


async def test_what_a_join_says_is_in_its_event_but_for_what_is_not_its_to_say(
    alice: Client, bob: Client
) -> None:
    room_id = await new_room(alice)
    said = {
        "reason": "thirsty",
        "org.example.cup": "blue",
        "membership": "ban",
        "third_party_signed": {},
        "join_authorised_via_users_server": alice.user_id,
    }
    answer = await bob.post(room_path(room_id, "join"), said)
    event = await member_event(bob, room_id, bob.user_id)

    assert answer.status == 200
    assert event["content"] == {"membership": "join", "reason": "thirsty", "org.example.cup": "blue"}


@versions_with_restricted_joins
async def test_a_restricted_room_lets_members_of_another_room_in(
    alice: Client, bob: Client, version: str
) -> None:
    gate = await new_room(alice)
    room_id = await restricted_room(alice, gate, version)
    refused = await change(bob, room_id, "join")
    await join(bob, gate)
    await bob.post(room_path(room_id, "join"), {"join_authorised_via_users_server": "@evil:test"})
    event = await member_event(bob, room_id, bob.user_id)

    assert refused.error == (403, "M_FORBIDDEN")
    assert event["content"]["join_authorised_via_users_server"] == alice.user_id


@versions_with_restricted_joins
async def test_joining_a_restricted_room_twice_makes_one_event(
    alice: Client, bob: Client, version: str
) -> None:
    gate = await new_room(alice)
    room_id = await restricted_room(alice, gate, version)
    await join(bob, gate)
    await join(bob, room_id)
    first = await member_event(bob, room_id, bob.user_id)
    await join(bob, room_id)
    second = await member_event(bob, room_id, bob.user_id)
    await bob.post(room_path(room_id, "join"), {"reason": "thirsty"})
    third = await member_event(bob, room_id, bob.user_id)

    assert second["event_id"] == first["event_id"]
    assert third["content"] == {"membership": "join", "reason": "thirsty"}


@pytest.mark.invariant("SEC-JSON-2")
@pytest.mark.parametrize(
    "allow", [None, "all", {}, {"room_id": "!a:test"}, ["!a:test"], [5, None], [{}], [{"type": 5}]]
)
async def test_sec_json_2_a_malformed_allow_list_lets_nobody_in(
    alice: Client, bob: Client, allow: Any
) -> None:
    room_id = await new_room(alice)
    await set_state(alice, room_id, "m.room.join_rules", {"join_rule": "restricted", "allow": allow})

    assert (await change(bob, room_id, "join")).error == (403, "M_FORBIDDEN")


@versions_with_restricted_joins
async def test_without_a_member_who_may_invite_nobody_is_let_in(
    alice: Client, bob: Client, carol: Client, version: str
) -> None:
    gate = await new_room(alice)
    room_id = await restricted_room(alice, gate, version, power_level_content_override={"invite": 50})
    for user in (bob, carol):
        await join(user, gate)
    await join(bob, room_id)
    await change(alice, room_id, "leave")

    assert (await change(carol, room_id, "join")).error == (400, "M_UNABLE_TO_GRANT_JOIN")


@versions_with_restricted_joins
async def test_a_member_whom_power_levels_name_may_let_in(
    alice: Client, bob: Client, carol: Client, version: str
) -> None:
    gate = await new_room(alice)
    users = {bob.user_id: 50} | ({alice.user_id: 100} if version != "12" else {})
    room_id = await restricted_room(
        alice, gate, version, power_level_content_override={"invite": 50, "users": users}
    )
    for user in (bob, carol):
        await join(user, gate)
    await join(bob, room_id)
    await change(alice, room_id, "leave")
    await join(carol, room_id)
    event = await member_event(carol, room_id, carol.user_id)

    assert event["content"]["join_authorised_via_users_server"] == bob.user_id


async def test_leaving(alice: Client, bob: Client, carol: Client) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)

    assert (await change(bob, room_id, "leave")).body == {}
    assert (await change(bob, room_id, "leave")).status == 200
    assert (await change(carol, room_id, "leave")).error == (403, "M_FORBIDDEN")
    assert (await change(carol, UNKNOWN_ROOM, "leave")).error == (404, "M_NOT_FOUND")


async def test_only_a_room_that_was_left_is_forgotten(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)
    joined = await change(bob, room_id, "forget")
    await change(bob, room_id, "leave")

    assert joined.error == (400, "M_UNKNOWN")
    assert (await change(bob, room_id, "forget")).body == {}
    assert (await change(bob, room_id, "forget")).status == 200
    assert (await change(bob, UNKNOWN_ROOM, "forget")).error == (400, "M_UNKNOWN")
    assert (await bob.get(room_path(room_id, "messages"), {"dir": "b"})).error == (403, "M_FORBIDDEN")


async def test_invites(alice: Client, bob: Client, carol: Client) -> None:
    room_id = await new_room(alice, preset="private_chat")
    invited = await change(alice, room_id, "invite", bob)
    again = await change(alice, room_id, "invite", bob)
    await join(bob, room_id)

    assert (invited.status, again.status) == (200, 200)
    assert (await change(alice, room_id, "invite", bob)).error == (403, "M_FORBIDDEN")
    assert (await change(alice, room_id, "invite", alice)).error == (403, "M_FORBIDDEN")
    assert (await change(carol, room_id, "invite", carol)).error == (403, "M_FORBIDDEN")
    assert (await change(alice, UNKNOWN_ROOM, "invite", bob)).error == (403, "M_FORBIDDEN")


@pytest.mark.parametrize("what", ["invite", "kick", "ban", "unban"])
async def test_another_user_is_named_by_a_user_id(alice: Client, what: str) -> None:
    path = room_path(await new_room(alice), what)

    assert (await alice.post(path, {})).error == (400, "M_MISSING_PARAM")
    assert (await alice.post(path, {"user_id": 5})).error == (400, "M_BAD_JSON")
    assert (await alice.post(path, {"user_id": "bob"})).error == (400, "M_INVALID_PARAM")


async def test_kicks_bans_and_their_end(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)

    assert (await change(alice, room_id, "kick", bob)).error == (403, "M_FORBIDDEN")
    assert (await change(alice, room_id, "unban", bob)).error == (403, "M_FORBIDDEN")
    assert (await change(alice, room_id, "ban", bob)).body == {}
    assert (await change(bob, room_id, "join")).error == (403, "M_FORBIDDEN")
    assert (await change(bob, room_id, "leave")).error == (403, "M_FORBIDDEN")
    assert (await change(alice, room_id, "invite", bob)).error == (403, "M_FORBIDDEN")
    assert (await change(alice, room_id, "unban", bob)).body == {}
    assert (await change(alice, room_id, "kick", bob)).error == (403, "M_FORBIDDEN")
    await join(bob, room_id)
    assert (await change(bob, room_id, "kick", alice)).error == (403, "M_FORBIDDEN")


@pytest.mark.invariant("SEC-VIS-4")
@pytest.mark.parametrize("what", ["kick", "ban", "unban", "invite"])
async def test_sec_vis_4_a_stranger_learns_nothing_of_who_is_in_a_room(
    alice: Client, bob: Client, carol: Client, what: str
) -> None:
    room_id = await new_room(alice, preset="private_chat", invite=[bob.user_id])
    member = await change(carol, room_id, what, bob)
    no_member = await carol.post(room_path(room_id, what), {"user_id": f"@{unique_name()}:test"})
    left = await put_member(carol, room_id, bob.user_id, {"membership": "leave"})
    never = await put_member(carol, room_id, f"@{unique_name()}:test", {"membership": "leave"})

    assert member.error == (403, "M_FORBIDDEN")
    assert (member.status, member.body) == (no_member.status, no_member.body)
    assert (left.status, left.body) == (never.status, never.body)


async def test_a_member_event_is_set_under_the_rules_of_the_endpoint_it_stands_for(
    alice: Client, bob: Client
) -> None:
    room_id = await new_room(alice, preset="private_chat")

    for odd in ({}, {"membership": 5}, {"membership": None}):
        assert (await put_member(alice, room_id, bob.user_id, odd)).error == (400, "M_BAD_JSON")
    for user_id in ("bob", "@bob"):
        odd_key = await put_member(alice, room_id, user_id, {"membership": "invite"})
        assert odd_key.error == (400, "M_INVALID_PARAM")
    for refused in ("join", "leave", "sit"):
        answer = await put_member(alice, room_id, bob.user_id, {"membership": refused})
        assert answer.error == (403, "M_FORBIDDEN")
    for allowed in ("invite", "leave", "ban", "leave"):
        answer = await put_member(alice, room_id, bob.user_id, {"membership": allowed})
        assert answer.status == 200, answer.body


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_invites_are_limited_by_sender_on_every_way(start_server: StartServer) -> None:
    server = await start_server(rate_limits={"enabled": True, "invite": {"per_second": 0.01, "burst": 3}})
    alice = await server.nobody.register(unique_name("alice"))
    others = [f"@{unique_name()}:test" for _ in range(6)]
    room_id = await new_room(alice, invite=others[:2])
    third = await put_member(alice, room_id, others[2], {"membership": "invite"})
    refused = [
        await alice.post(room_path(room_id, "invite"), {"user_id": others[3]}),
        await put_member(alice, room_id, others[4], {"membership": "invite"}),
        await alice.post("/_matrix/client/v3/createRoom", {"invite": [others[5]]}),
    ]
    unlimited = await alice.post("/_matrix/client/v3/createRoom", {"name": "no invites"})

    assert (third.status, unlimited.status) == (200, 200)
    for answer in refused:
        assert answer.error == (429, "M_LIMIT_EXCEEDED")
        assert 0 < answer.body["retry_after_ms"] <= 100_000
        assert int(answer.headers["Retry-After"]) * 1000 >= answer.body["retry_after_ms"]


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_invites_are_limited_by_who_gets_them(start_server: StartServer) -> None:
    server = await start_server(rate_limits={"enabled": True, "invited": {"per_second": 0.01, "burst": 2}})
    senders = [await server.nobody.register(unique_name()) for _ in range(3)]
    target = f"@{unique_name()}:test"
    answers = [
        await sender.post(room_path(await new_room(sender), "invite"), {"user_id": target})
        for sender in senders
    ]
    made = await senders[0].post("/_matrix/client/v3/createRoom", {"invite": [target]})

    assert [answer.status for answer in (*answers, made)] == [200, 200, 429, 429]


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_joins_rooms_and_changes_of_members_are_limited(start_server: StartServer) -> None:
    few = {"per_second": 0.01, "burst": 2}
    server = await start_server(
        rate_limits={"enabled": True, "join": few, "create_room": few, "message": {**few, "burst": 4}}
    )
    alice = await server.nobody.register(unique_name("alice"))
    bob = await server.nobody.register(unique_name("bob"))
    made = [await alice.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}) for _ in range(3)]
    room_id = made[0].body["room_id"]
    joins = [
        await change(bob, room_id, "join"),
        await put_member(bob, room_id, bob.user_id, {"membership": "join", "reason": "a"}),
        await put_member(bob, room_id, bob.user_id, {"membership": "join", "reason": "b"}),
        await bob.post(f"/_matrix/client/v3/join/{quote(room_id)}", {}),
    ]
    changes = [await change(alice, room_id, what, bob) for what in ("ban", "unban", "ban", "unban", "kick")]

    assert [answer.status for answer in made] == [200, 200, 429]
    assert [answer.status for answer in joins] == [200, 200, 429, 429]
    assert [answer.status for answer in changes] == [200, 200, 200, 200, 429]
    for answer in (made[-1], joins[-1], changes[-1]):
        assert answer.error == (429, "M_LIMIT_EXCEEDED")
        assert int(answer.headers["Retry-After"]) * 1000 >= answer.body["retry_after_ms"] > 0
