"""Invites from other servers to rooms that this server is not in, and what becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import pytest

from federation.outbound.signed_client import uri_of
from homeserver.protocol.auth_events import AUTHORISER, CREATE
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, ServerName
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.server_key_responses import parse_key_response
from homeserver.protocol.signing import verify_signed_json
from homeserver.protocol.stripped_state import MAX_ENTRIES
from storage import oob_memberships
from storage.event_flags import EventFlag
from tests.client_api.rooms import new_room, room_path, set_state
from tests.clients import Client, Response
from tests.federation.homeservers import ask, name_of, new_word
from tests.federation.peers import KEY_LIST, Asked, Peer, json_answer
from tests.federation.played_rooms import V1, V2, PlayedRoom, send, user_of
from tests.room_versions import versions_of_each_form
from tests.servers import RunningServer, StartServer, unique_name

INVALID, FORBIDDEN = (400, "M_INVALID_PARAM"), (403, "M_FORBIDDEN")
KNOWN_KEYS = {"type", "state_key", "sender", "content"}
WITH_LEFT_ROOMS = {"room": {"include_leave": True}}


def invite_of(room: PlayedRoom, user_id: str, sender: str | None = None, **overrides: Any) -> Pdu:
    """An invite that is no part of its room yet."""
    sender = sender or user_of(room.peers[0], "tea")
    content = overrides.pop("content", {"membership": "invite"})
    state_key = overrides.pop("state_key", user_id)
    return room.event(
        sender, overrides.pop("type", "m.room.member"), content, state_key, apart=True, **overrides
    )


def stripped_of(room: PlayedRoom) -> list[Any]:
    """What goes with an invite: the create event and the join rules, as events."""
    return [room.events[room.state[key]].json for key in (CREATE, ("m.room.join_rules", ""))]


async def hand_over(
    server: RunningServer,
    peer: Peer,
    room: PlayedRoom,
    invite: Pdu,
    *,
    stripped: Any = None,
    room_id: str | None = None,
    event_id: str | None = None,
    **overrides: Any,
) -> Response:
    """PUT an invite at the second version of the endpoint."""
    content = {
        "event": invite.json,
        "room_version": room.version.version,
        "invite_room_state": stripped_of(room) if stripped is None else stripped,
        **overrides,
    }
    uri = uri_of(f"{V2}/invite", room_id or room.room_id, event_id or invite.event_id)
    return await ask(server, peer, uri, content, method="PUT")


def invited(answer: Any, room: PlayedRoom) -> list[Any]:
    """The stripped state of a room in the invites of a /sync response."""
    events: list[Any] = answer["rooms"]["invite"][room.room_id]["invite_state"]["events"]
    return events


def left(answer: Any, room: PlayedRoom) -> list[Any]:
    """The timeline of a room in the left rooms of a /sync response."""
    events: list[Any] = answer["rooms"]["leave"][room.room_id]["timeline"]["events"]
    return events


async def leave(client: Client, room: PlayedRoom, **content: Any) -> Response:
    return await client.post(room_path(room.room_id, "leave"), content)


async def wait_for(client: Client, since: str, kind: str, room: PlayedRoom) -> Any:
    """Sync until a room is in a section of the response."""
    async with asyncio.timeout(10):
        while True:
            answer = await client.sync(since, timeout=5000)
            if room.room_id in answer["rooms"].get(kind, {}):
                return answer
            since = answer["next_batch"]


def check_signature(server: RunningServer, version: str, event: dict[str, Any]) -> None:
    """Check that a server signed an event."""
    response = parse_key_response(server.services.server_keys.own_response(), name_of(server), server.clock())
    signed = redact(room_version(version), event)
    verify_signed_json(signed, name_of(server), response.current, valid_at=event["origin_server_ts"])


# -- an invite comes


@versions_of_each_form
async def test_an_invite_is_signed_and_shown_once(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    invite = invite_of(
        room, alice.user_id, content={"membership": "invite", "is_direct": True, "displayname": "Alice"}
    )
    since = (await alice.sync())["next_batch"]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(alice.sync(since, timeout=10_000))
        answer = await hand_over(here, peer, room, invite)
    woken = waiting.result()
    initial = await alice.sync()

    assert answer.status == 200, answer.body
    event = answer.body["event"]
    assert {**event, "signatures": invite.json["signatures"]} == invite.json
    assert event["signatures"].keys() == {peer.name, name_of(here)}
    check_signature(here, version, event)
    for shown in (invited(woken, room), invited(initial, room)):
        assert [stripped["type"] for stripped in shown] == [
            "m.room.create",
            "m.room.join_rules",
            "m.room.member",
        ]
        assert all(stripped.keys() - {"origin_server_ts"} == KNOWN_KEYS for stripped in shown)
        assert ("origin_server_ts" in shown[0]) == (version == "12")
        assert shown[-1]["content"] == invite.content
        assert shown[-1]["state_key"] == alice.user_id
    again = await alice.sync(woken["next_batch"])
    assert again["rooms"] == {}


async def test_an_invite_that_comes_twice_is_shown_once(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    invite = invite_of(room, alice.user_id)

    first = await hand_over(here, peer, room, invite)
    answer = await alice.sync()
    second = await hand_over(here, peer, room, invite)
    later = await alice.sync(answer["next_batch"])

    assert first.status == second.status == 200
    assert first.body == second.body
    assert later["rooms"] == {}


async def test_a_new_invite_to_the_same_room_takes_the_place_of_the_old_one(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await hand_over(here, peer, room, invite_of(room, alice.user_id))
    since = (await alice.sync())["next_batch"]

    reason = {"membership": "invite", "reason": "please"}
    await hand_over(here, peer, room, invite_of(room, alice.user_id, content=reason))

    assert invited(await alice.sync(since), room)[-1]["content"] == reason
    assert invited(await alice.sync(), room)[-1]["content"] == reason


async def test_the_first_version_of_the_endpoint_is_for_rooms_of_the_first_versions(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer], version="11")
    invite = invite_of(room, alice.user_id)
    uri = uri_of(f"{V1}/invite", room.room_id, invite.event_id)
    content = {**invite.json, "unsigned": {"invite_room_state": stripped_of(room)}}

    # Without a name it is taken for an event of version 1, which it is not.
    assert (await ask(here, peer, uri, content, method="PUT")).error == (400, "M_INVALID_PARAM")
    oldest = PlayedRoom.new([peer], version="1")
    invite_1 = invite_of(oldest, alice.user_id)
    uri_1 = uri_of(f"{V1}/invite", oldest.room_id, invite_1.event_id)
    content_1 = {**invite_1.json, "unsigned": {"invite_room_state": stripped_of(oldest)}}
    answer = await ask(here, peer, uri_1, content_1, method="PUT")
    assert (answer.status, answer.body[0]) == (200, 200)
    check_signature(here, "1", answer.body[1]["event"])

    # Of a room that is known the version is known too.
    assert (await hand_over(here, peer, room, invite_of(room, alice.user_id))).status == 200
    known = await ask(here, peer, uri, content, method="PUT")
    assert known.status == 200
    status, signed = known.body
    assert status == 200
    check_signature(here, "11", signed["event"])
    assert "unsigned" not in signed["event"]


async def test_an_invite_to_a_room_of_an_unknown_version_is_refused(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    for version in ("0", "13", "org.example.tea", ""):
        answer = await hand_over(here, peer, room, invite_of(room, alice.user_id), room_version=version)
        assert answer.error == (400, "M_INCOMPATIBLE_ROOM_VERSION")
        assert answer.body["room_version"] == version
    assert (await alice.sync())["rooms"] == {}


async def test_only_users_who_are_there_are_invited(here: RunningServer, peer: Peer, alice: Client) -> None:
    room = PlayedRoom.new([peer])
    nobody = f"@{new_word()}:{name_of(here)}"
    await here.services.accounts.deactivate(alice.user_id)  # type: ignore[arg-type]

    answers = [
        await hand_over(here, peer, room, invite_of(room, user_id)) for user_id in (nobody, alice.user_id)
    ]

    assert [answer.error for answer in answers] == [FORBIDDEN, FORBIDDEN]
    told = {
        answer.body["error"].replace(user, "")
        for answer, user in zip(answers, (nobody, alice.user_id), strict=True)
    }
    assert len(told) == 1


@pytest.mark.invariant("SEC-SIGN-1")
@versions_of_each_form
async def test_sec_sign_1_only_invites_of_our_users_by_users_of_the_origin_are_signed(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer, notary], version=version)
    other = PlayedRoom.new([peer], version=version)
    alice_id, guest = alice.user_id, user_of(notary, "tea")
    wrong = [
        invite_of(room, alice_id, type="m.room.message"),
        invite_of(room, alice_id, type="m.room.power_levels"),
        invite_of(room, alice_id, content={"membership": "join"}),
        invite_of(room, alice_id, content={"membership": "leave"}),
        invite_of(room, alice_id, content={"membership": ["invite"]}),
        invite_of(room, alice_id, content={}),
        invite_of(room, alice_id, sender=guest),
        invite_of(room, alice_id, sender=guest, signed_by=peer),
        invite_of(room, alice_id, sender=alice_id, signed_by=peer),
        invite_of(room, alice_id, state_key=user_of(peer, "tea")),
        invite_of(room, alice_id, state_key=f"@tea:sub.{name_of(here)}"),
        invite_of(room, alice_id, state_key=f"{alice_id}:8448"),
        invite_of(room, alice_id, state_key=alice_id[1:]),
        invite_of(room, alice_id, state_key=""),
        invite_of(room, alice_id, state_key=None),
        invite_of(room, alice_id, signatures={}),
        invite_of(room, alice_id, signatures={peer.name: {"ed25519:unknown": "A" * 86}}),
        invite_of(room, alice_id, signed_by=notary),
        invite_of(room, alice_id, hashes={"sha256": "A" * 43}),
        invite_of(room, alice_id, hashes={}),
        invite_of(room, alice_id, depth=-1),
        invite_of(room, alice_id, origin_server_ts="now"),
        invite_of(room, alice_id, prev_events=["$a"] * 21),
        invite_of(room, alice_id, content={"membership": "invite", "x": "y" * 65_000}),
    ]

    for invite in wrong:
        answer = await hand_over(here, peer, room, invite)
        assert answer.error == INVALID, invite.json
        assert "signatures" not in answer.body
    good = invite_of(room, alice_id)
    for answer in (
        await hand_over(here, peer, room, good, event_id=invite_of(room, alice_id, depth=99).event_id),
        await hand_over(here, peer, room, good, event_id="$tea"),
        await hand_over(here, peer, room, good, room_id=other.room_id),
        await hand_over(here, peer, other, good, stripped=stripped_of(room)),
        await hand_over(here, notary, room, good),
        await hand_over(here, peer, room, good, room_id="#tea:tea.test"),
    ):
        assert answer.error == INVALID
    no_events: list[Any] = [None, [], "event", 1]
    for no_event in no_events:
        answer = await hand_over(here, peer, room, good, event=no_event)
        assert answer.error == (400, "M_BAD_JSON")
    assert (await hand_over(here, peer, room, good, room_version=12)).error == (400, "M_BAD_JSON")
    unsigned = await here.nobody.put(uri_of(f"{V2}/invite", room.room_id, good.event_id), {})
    assert unsigned.error == (401, "M_UNAUTHORIZED")
    assert (await alice.sync())["rooms"] == {}


# -- the stripped state that comes with it

STRIPPED_NAME = {
    "type": "m.room.name",
    "state_key": "",
    "sender": "@tea:tea.test",
    "content": {"name": "Tea"},
}

MALFORMED: Sequence[Any] = [
    None,
    "m.room.name",
    7,
    [],
    {},
    {**STRIPPED_NAME, "type": None},
    {**STRIPPED_NAME, "type": ["m.room.name"]},
    {**STRIPPED_NAME, "type": "x" * 256},
    {**STRIPPED_NAME, "state_key": None},
    {**STRIPPED_NAME, "state_key": 1},
    {**STRIPPED_NAME, "sender": {}},
    {**STRIPPED_NAME, "sender": "tea"},
    {**STRIPPED_NAME, "content": []},
    {**STRIPPED_NAME, "content": "Tea"},
    {**STRIPPED_NAME, "content": {"name": 2**60}},
    {"type": "m.room.name", "sender": "@tea:tea.test", "content": {}},
    {"type": "m.room.name", "state_key": "", "sender": "@tea:tea.test"},
]


@pytest.mark.invariant("SEC-JSON-2")
async def test_sec_json_2_malformed_stripped_state_never_breaks_sync(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer], version="11")
    invite = invite_of(room, alice.user_id)

    answer = await hand_over(here, peer, room, invite, stripped=[*MALFORMED, STRIPPED_NAME])

    assert answer.status == 200
    shown = invited(await alice.sync(), room)
    assert shown[0] == STRIPPED_NAME
    assert [event["type"] for event in shown] == ["m.room.name", "m.room.member"]
    for stripped in ("no list", {"a": 1}, 7):
        invite = invite_of(room, alice.user_id, content={"membership": "invite", "reason": str(stripped)})
        assert (await hand_over(here, peer, room, invite, stripped=stripped)).status == 200
        assert [event["type"] for event in invited(await alice.sync(), room)] == ["m.room.member"]


@pytest.mark.invariant("SEC-JSON-2")
async def test_sec_json_2_where_the_room_id_is_made_of_the_create_event_all_must_be_well_formed(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    create, rules = stripped_of(room)
    for entry in MALFORMED:
        invite = invite_of(room, alice.user_id)
        assert (await hand_over(here, peer, room, invite, stripped=[create, rules, entry])).error == INVALID
    assert (await alice.sync())["rooms"] == {}


async def test_the_create_event_has_to_be_that_of_the_room_where_its_id_is_made_of_it(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room, other = PlayedRoom.new([peer]), PlayedRoom.new([peer])
    create, rules = stripped_of(room)
    other_create, other_rules = stripped_of(other)
    as_stripped = {key: create[key] for key in KNOWN_KEYS}
    name = room.event(user_of(peer, "tea"), "m.room.name", {"name": "Tea"}, "", apart=True).json
    message = room.event(user_of(peer, "tea"), "m.room.message", {"body": "tea"}, apart=True).json
    for stripped in (
        [],
        [rules],
        [as_stripped, rules],
        [other_create, rules],
        [create, other_create],
        [create, other_rules],
        [create, message],
        [{**create, "signatures": {}}, rules],
        [{**create, "content": {**create["content"], "x": 1}}, rules],
        [create, {**name, "signatures": {}}],
        [create, {**name, "room_id": other.room_id}],
        {"a": create},
    ):
        invite = invite_of(room, alice.user_id)
        assert (await hand_over(here, peer, room, invite, stripped=stripped)).error == INVALID
    absent = await hand_over(here, peer, room, invite_of(room, alice.user_id), invite_room_state=None)
    assert absent.error == INVALID
    assert (await alice.sync())["rooms"] == {}

    # What servers send that know events in stripped form only, but for the create event.
    mixed = await hand_over(
        here, peer, room, invite_of(room, alice.user_id), stripped=[create, STRIPPED_NAME, name]
    )
    assert mixed.status == 200
    shown = invited(await alice.sync(), room)
    assert [event["type"] for event in shown] == ["m.room.create", "m.room.name", "m.room.member"]
    assert shown[1]["content"] == {"name": "Tea"}


async def test_where_the_room_id_is_no_hash_other_entries_are_left_out(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room, other = PlayedRoom.new([peer], version="11"), PlayedRoom.new([peer], version="11")
    create, rules = stripped_of(room)
    stripped = [{**create, "signatures": {}}, *stripped_of(other), rules, rules]
    member = {**STRIPPED_NAME, "type": "m.room.member", "state_key": alice.user_id}

    answer = await hand_over(here, peer, room, invite_of(room, alice.user_id), stripped=[*stripped, member])

    assert answer.status == 200
    shown = invited(await alice.sync(), room)
    assert [event["type"] for event in shown] == ["m.room.join_rules", "m.room.member"]
    assert shown[-1]["content"] == {"membership": "invite"}


@pytest.mark.invariant("SEC-SIZE-1")
@versions_of_each_form
async def test_sec_size_1_stripped_state_is_bounded(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    most = [{**STRIPPED_NAME, "state_key": str(number)} for number in range(MAX_ENTRIES - 2)]
    large = {**STRIPPED_NAME, "content": {"name": "x" * 66_000}}
    heavy = [{**entry, "content": {"name": "x" * 60_000}} for entry in most[:10]]
    for stripped in ([*most, *most], [large], heavy):
        answer = await hand_over(
            here,
            peer,
            room,
            invite_of(room, alice.user_id),
            stripped=[*stripped_of(room), *stripped],
        )
        assert answer.error == INVALID
    assert (await alice.sync())["rooms"] == {}

    strangers = [
        {**STRIPPED_NAME, "sender": f"@tea:s{number}.test", "state_key": str(number), "signatures": {}}
        for number in range(21)
    ]
    many = await hand_over(
        here, peer, room, invite_of(room, alice.user_id), stripped=[*stripped_of(room), *strangers]
    )
    assert many.error == INVALID
    full = [*stripped_of(room), *most]
    assert (await hand_over(here, peer, room, invite_of(room, alice.user_id), stripped=full)).status == 200
    assert len(invited(await alice.sync(), room)) == MAX_ENTRIES + 1


# -- rooms that are known


async def test_an_invite_to_a_room_that_is_known_is_signed_and_comes_with_the_room_s_events(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    carol = await here.nobody.register(unique_name("carol"))
    room_id = await new_room(alice, power_level_content_override={"invite": 0})
    room = await PlayedRoom.entered(here, [peer], user_of(peer, "tea"), room_id)
    since = (await carol.sync())["next_batch"]
    invite = invite_of(room, carol.user_id)

    answer = await hand_over(here, peer, room, invite)
    before = await carol.sync(since)
    assert (await send(here, peer, [room.parsed(answer.body["event"])])).status == 200
    after = await wait_for(carol, before["next_batch"], "invite", room)
    again = await carol.sync(after["next_batch"])

    assert answer.status == 200
    check_signature(here, room.version.version, answer.body["event"])
    assert before["rooms"] == {}
    assert invited(after, room)[-1]["state_key"] == carol.user_id
    assert again["rooms"] == {}


async def test_a_server_that_the_room_s_acl_denies_invites_nobody(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    carol = await here.nobody.register(unique_name("carol"))
    room_id = await new_room(alice)
    room = await PlayedRoom.entered(here, [peer], user_of(peer, "tea"), room_id)
    acl = {"allow": ["*"], "deny": [peer.name.partition(":")[0]], "allow_ip_literals": True}
    await set_state(alice, room_id, "m.room.server_acl", acl)

    answer = await hand_over(here, peer, room, invite_of(room, carol.user_id))

    assert answer.error == FORBIDDEN
    assert (await carol.sync())["rooms"] == {}


# -- limits


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_invites_are_limited_for_each_server_and_each_user(
    start_server: StartServer, peer: Peer, notary: Peer
) -> None:
    limits = {
        "invite": {"per_second": 0.001, "burst": 4},
        "invited": {"per_second": 0.001, "burst": 2},
    }
    server = await start_server(rate_limits=limits)
    alice = await server.nobody.register(unique_name("alice"))
    bob = await server.nobody.register(unique_name("bob"))
    rooms = [PlayedRoom.new([one]) for one in (peer, notary)]

    async def invite(room: PlayedRoom, client: Client) -> int:
        return (await hand_over(server, room.peers[0], room, invite_of(room, client.user_id))).status

    assert [await invite(rooms[0], alice) for _ in range(3)] == [200, 200, 429]
    assert await invite(rooms[1], alice) == 429
    assert [await invite(rooms[0], bob) for _ in range(2)] == [200, 429]
    assert await invite(rooms[1], bob) == 200


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_ten_thousand_invites_leave_sync_fast(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await hand_over(here, peer, room, invite_of(room, alice.user_id))
    membership = here.services.room_membership
    async with membership.database.connection() as tx:
        await tx.execute(
            """
            WITH known AS (
                SELECT * FROM oob_membership
                WHERE user_nid = (SELECT nid FROM atoms WHERE s = $1)
            ), more AS (
                INSERT INTO rooms (nid, room_id, version)
                SELECT -number - room_nid * 10000, '!' || number || '_' || room_nid || ':tea.test', version
                FROM known, generate_series(1, 9999) AS number RETURNING nid
            )
            INSERT INTO oob_membership (user_nid, room_nid, membership, event_nid, pos, stripped, version)
            SELECT user_nid, more.nid, membership, event_nid, pos, stripped, version FROM known, more
            """,
            alice.user_id.encode(),
        )

    # The time of the processor, as others may use it too.
    started = time.process_time()
    initial = await alice.sync()
    middle = time.process_time()
    later = await alice.sync(initial["next_batch"])
    ended = time.process_time()

    assert len(initial["rooms"]["invite"]) == 10_000
    assert later["rooms"] == {}
    assert middle - started < 1 and ended - middle < 1
    async with membership.database.connection() as tx:
        await tx.execute("DELETE FROM rooms WHERE room_id LIKE '!%:tea.test'")


# -- the user does not want it


@versions_of_each_form
async def test_a_rejected_invite_is_left_through_the_inviter_s_server(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    assert (await room.invite(here, user_of(peer, "tea"), alice.user_id)).status == 200
    since = (await alice.sync())["next_batch"]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(alice.sync(since, timeout=10_000))
        answer = await leave(alice, room, reason="no tea")
    woken = waiting.result()

    assert answer.status == 200
    member = room.events[room.state["m.room.member", alice.user_id]]
    assert member.content == {"membership": "leave", "reason": "no tea"}
    assert (member.sender, member.state_key) == (alice.user_id, alice.user_id)
    check_signature(here, version, member.json)
    [shown] = left(woken, room)
    assert (shown["event_id"], shown["content"]) == (member.event_id, member.content)
    assert "invite" not in woken["rooms"]
    assert (await alice.sync(woken["next_batch"]))["rooms"] == {}
    assert (await alice.sync())["rooms"] == {}
    assert left(await alice.sync(filter=WITH_LEFT_ROOMS), room) == [shown]


async def test_leaving_twice_changes_nothing_and_an_old_invite_does_not_come_back(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    invite = invite_of(room, alice.user_id)
    await hand_over(here, peer, room, invite)
    room.add(invite)
    assert (await leave(alice, room)).status == 200
    since = (await alice.sync())["next_batch"]

    assert (await leave(alice, room)).status == 200
    assert (await hand_over(here, peer, room, invite)).status == 200

    assert (await alice.sync(since))["rooms"] == {}
    assert len(room.requests("send_leave")) == 1


async def test_whoever_left_may_be_invited_again(here: RunningServer, peer: Peer, alice: Client) -> None:
    room = PlayedRoom.new([peer])
    for round_ in range(3):
        since = (await alice.sync())["next_batch"]
        assert (await room.invite(here, user_of(peer, "tea"), alice.user_id)).status == 200, round_
        answer = await alice.sync(since)
        assert invited(answer, room)
        assert (await leave(alice, room)).status == 200
        assert left(await alice.sync(answer["next_batch"]), room)
    assert len(room.requests("send_leave")) == 3


async def test_a_room_that_was_left_can_be_forgotten(here: RunningServer, peer: Peer, alice: Client) -> None:
    room = PlayedRoom.new([peer])
    await room.invite(here, user_of(peer, "tea"), alice.user_id)
    forget = room_path(room.room_id, "forget")
    since = (await alice.sync())["next_batch"]

    assert (await alice.post(forget, {})).error == (400, "M_UNKNOWN")
    await leave(alice, room)
    assert (await alice.post(forget, {})).status == 200

    assert left(await alice.sync(since), room)
    assert (await alice.sync(filter=WITH_LEFT_ROOMS))["rooms"] == {}
    await room.invite(here, user_of(peer, "tea"), alice.user_id)
    assert invited(await alice.sync(), room)


async def test_an_invite_to_a_room_that_we_left_is_rejected_through_a_server_that_was_in_it(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    carol = await here.nobody.register(unique_name("carol"))
    room_id = await new_room(alice, invite=[carol.user_id])
    room = await PlayedRoom.entered(here, [peer], user_of(peer, "tea"), room_id)
    assert (await leave(alice, room)).status == 200
    since = (await carol.sync())["next_batch"]

    assert (await leave(carol, room)).status == 200

    assert len(room.requests("send_leave")) == 1
    assert room.events[room.state["m.room.member", carol.user_id]].content == {"membership": "leave"}
    assert [event["state_key"] for event in left(await carol.sync(since), room)] == [carol.user_id]
    assert (await carol.sync())["rooms"] == {}
    assert (await leave(carol, room)).status == 200
    assert len(room.requests("send_leave")) == 1


@pytest.mark.parametrize("endpoint", ["make_leave", "send_leave"])
@pytest.mark.parametrize("status", [403, 404, 500])
async def test_whom_no_server_lets_leave_is_free_all_the_same(
    here: RunningServer, peer: Peer, alice: Client, endpoint: str, status: int
) -> None:
    room = PlayedRoom.new([peer])
    await room.invite(here, user_of(peer, "tea"), alice.user_id)
    room.fail(endpoint, status)
    since = (await alice.sync())["next_batch"]

    assert (await leave(alice, room)).status == 200

    [shown] = left(await alice.sync(since), room)
    assert shown["content"] == {"membership": "leave"}
    assert shown["event_id"] not in room.events
    assert (await alice.sync())["rooms"] == {}
    event_uri = uri_of(f"{V1}/event", shown["event_id"])
    assert (await ask(here, peer, event_uri)).status in (403, 404)
    assert peer.transactions == []


async def test_a_leave_of_too_much_is_refused(here: RunningServer, peer: Peer, alice: Client) -> None:
    room = PlayedRoom.new([peer])
    await room.invite(here, user_of(peer, "tea"), alice.user_id)

    assert (await leave(alice, room, reason="x" * 70_000)).error == (413, "M_TOO_LARGE")

    assert invited(await alice.sync(), room)
    assert room.requests("make_leave") == []


async def test_a_room_that_is_not_known_cannot_be_left(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    assert (await leave(alice, room)).error == (404, "M_NOT_FOUND")
    bob = await here.nobody.register(unique_name("bob"))
    await room.invite(here, user_of(peer, "tea"), bob.user_id)
    assert (await leave(alice, room)).error == (404, "M_NOT_FOUND")
    assert (await alice.post(room_path(room.room_id, "forget"), {})).error == (400, "M_UNKNOWN")
    assert room.requests("make_leave") == []


EVENT_TYPES = [
    "m.room.create",
    "m.room.power_levels",
    "m.room.message",
    "m.room.join_rules",
    "m.room.server_acl",
    "m.room.redaction",
    "m.room.tombstone",
    "m.room.third_party_invite",
]


@pytest.mark.invariant("SEC-SIGN-1")
async def test_sec_sign_1_a_leave_is_never_what_a_template_makes_of_it(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    other = await here.nobody.register(unique_name("other"))
    changes: list[dict[str, Any]] = [{"type": event_type} for event_type in EVENT_TYPES]
    changes += [
        {"content": {"membership": "join"}},
        {"content": {"membership": "invite"}},
        {"content": {"membership": "ban"}},
        {"content": {}},
        {"sender": other.user_id},
        {"state_key": other.user_id},
        {"state_key": ""},
        {"room_id": "!other:tea.test"},
        {"prev_events": "$a"},
        {"auth_events": [["$a", {}]]},
        {"depth": "deep"},
    ]
    for change in changes:
        room = PlayedRoom.new([peer])
        await room.invite(here, user_of(peer, "tea"), alice.user_id)
        template = {
            "room_id": room.room_id,
            "type": "m.room.member",
            "sender": alice.user_id,
            "state_key": alice.user_id,
            "content": {"membership": "leave"},
            "prev_events": list(room.heads),
            "auth_events": list(room.heads),
            "depth": 9,
            **change,
        }
        room.answers["make_leave"] = lambda _asked, event=template: json_answer(  # type: ignore[misc]
            {"room_version": "12", "event": event}
        )
        assert (await leave(alice, room)).status == 200
        assert room.requests("send_leave") == [], change
        assert (await alice.sync())["rooms"] == {}


@pytest.mark.invariant("SEC-SIGN-1")
async def test_sec_sign_1_what_a_template_adds_to_a_leave_is_left_out(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await room.invite(here, user_of(peer, "tea"), alice.user_id)

    def answer(asked: Asked) -> Any:
        event = {
            "room_id": room.room_id,
            "type": "m.room.member",
            "sender": alice.user_id,
            "state_key": alice.user_id,
            "content": {"membership": "leave", "displayname": "Mallory", AUTHORISER: 1},
            "prev_events": list(room.heads),
            "auth_events": list(room.heads),
            "depth": 9,
            "redacts": "$a",
            "unsigned": {"a": 1},
            "signatures": {"evil.test": {"ed25519:1": "a"}},
            "origin_server_ts": 1,
        }
        return json_answer({"room_version": "12", "event": event})

    room.answers["make_leave"] = answer
    assert (await leave(alice, room, reason="no")).status == 200

    [asked] = room.requests("send_leave")
    event = asked.content
    assert event["content"] == {"membership": "leave", "reason": "no"}
    assert event["origin_server_ts"] == here.clock()
    assert event["signatures"].keys() == {name_of(here)}
    assert event.keys() == {
        "room_id", "type", "sender", "state_key", "content", "prev_events", "auth_events", "depth",
        "origin_server_ts", "hashes", "signatures",
    }  # fmt: skip


async def test_a_template_for_another_room_version_is_not_used(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    for answer in ({"room_version": "11"}, {"room_version": 12}, {}, {"room_version": "99"}):
        room = PlayedRoom.new([peer])
        await room.invite(here, user_of(peer, "tea"), alice.user_id)
        room.answers["make_leave"] = lambda _asked, given=answer: json_answer(  # type: ignore[misc]
            {**given, "event": {}}
        )
        assert (await leave(alice, room)).status == 200
        assert room.requests("send_leave") == []


async def test_who_ends_an_account_rejects_its_invites(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await room.invite(here, user_of(peer, "tea"), alice.user_id)
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": alice.user_id},
        "password": alice.password,
    }

    assert (await alice.post("/_matrix/client/v3/account/deactivate", {"auth": auth})).status == 200

    async with asyncio.timeout(10):
        while not room.requests("send_leave"):
            await asyncio.sleep(0.02)
    assert room.events[room.state["m.room.member", alice.user_id]].content == {"membership": "leave"}


# -- the inviter takes it back


@versions_of_each_form
@pytest.mark.parametrize("membership", ["leave", "ban"])
async def test_the_inviter_withdraws_an_invite(
    here: RunningServer, peer: Peer, alice: Client, version: str, membership: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    tea = user_of(peer, "tea")
    await room.invite(here, tea, alice.user_id)
    since = (await alice.sync())["next_batch"]
    kick = room.event(tea, "m.room.member", {"membership": membership, "reason": "a mistake"}, alice.user_id)

    assert (await send(here, peer, [kick])).body == {"pdus": {kick.event_id: {}}}
    answer = await wait_for(alice, since, "leave", room)
    await send(here, peer, [kick])

    [shown] = left(answer, room)
    assert (shown["event_id"], shown["sender"], shown["content"]) == (kick.event_id, tea, kick.content)
    assert (await alice.sync(answer["next_batch"]))["rooms"] == {}
    assert (await alice.sync())["rooms"] == {}
    assert left(await alice.sync(filter=WITH_LEFT_ROOMS), room)
    assert room.requests("make_leave") == []


async def test_an_invite_is_not_withdrawn_with_another_that_came_meanwhile(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    tea, milk = user_of(peer, "tea"), user_of(peer, "milk")
    room = PlayedRoom.new([peer], members=[tea, milk])
    room.event(tea, "m.room.power_levels", {"users": {milk: 100}}, "")
    await room.invite(here, tea, alice.user_id)
    kick = room.event(tea, "m.room.member", {"membership": "leave"}, alice.user_id)
    standing = oob_memberships.standing

    async def be_overtaken(*args: Any) -> Any:
        found = await standing(*args)
        monkeypatch.undo()
        await room.invite(here, milk, alice.user_id)
        return found

    monkeypatch.setattr(oob_memberships, "standing", be_overtaken)
    assert (await send(here, peer, [kick])).status == 200

    assert invited(await alice.sync(), room)[-1]["sender"] == milk


async def test_of_rooms_that_we_are_not_in_nothing_else_is_looked_at(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    tea, milk = user_of(peer, "tea"), user_of(notary, "milk")
    room = PlayedRoom.new([peer, notary], members=[tea, milk])
    await room.invite(here, tea, alice.user_id)
    said = room.event(milk, "m.room.message", {"body": "milk"})

    assert (await send(here, peer, [said])).body == {"pdus": {}}
    assert notary.asked(KEY_LIST) == 0


async def test_nobody_but_the_inviter_withdraws_an_invite(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    tea, milk, guest = user_of(peer, "tea"), user_of(peer, "milk"), user_of(notary, "tea")
    room = PlayedRoom.new([peer, notary], members=[tea, milk, guest])
    room.event(tea, "m.room.power_levels", {"users": {milk: 100, guest: 100}}, "")
    await room.invite(here, milk, alice.user_id)
    since = (await alice.sync())["next_batch"]
    invite = room.events[room.state["m.room.member", alice.user_id]]
    leave_content = {"membership": "leave"}

    def ended(sender: str, content: dict[str, Any] = leave_content, **fields: Any) -> Pdu:
        return room.event(sender, "m.room.member", content, alice.user_id, apart=True, **fields)

    uncited = [event_id for event_id in invite.auth_events if event_id != invite.event_id]
    for origin, pdu in (
        (peer, ended(tea)),
        (notary, ended(guest)),
        (peer, ended(milk, auth=uncited)),
        (peer, ended(milk, {"membership": "join"})),
        (peer, ended(milk, {"membership": "invite"})),
        (peer, ended(milk, signatures={})),
        (peer, ended(milk, signed_by=notary)),
        (peer, room.event(milk, "m.room.message", leave_content, apart=True)),
        (peer, room.event(milk, "m.room.member", leave_content, f"@tea:{name_of(here)}", apart=True)),
    ):
        assert (await send(here, origin, [pdu])).status == 200

    assert (await alice.sync(since))["rooms"] == {}
    assert invited(await alice.sync(), room)[-1]["sender"] == milk
    assert (await send(here, peer, [ended(milk)])).status == 200
    await wait_for(alice, since, "leave", room)


async def test_what_is_not_known_of_a_room_is_told_to_nobody(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await room.invite(here, user_of(peer, "tea"), alice.user_id)
    invite = room.state["m.room.member", alice.user_id]

    for path in ("state", "members", "messages", f"event/{quote(invite)}", "state/m.room.create/"):
        answer = await alice.get(f"{room_path(room.room_id)}/{path}")
        assert answer.status in (403, 404), path
    assert (await ask(here, peer, uri_of(f"{V1}/event", invite))).status in (403, 404)
    assert (await alice.get("/_matrix/client/v3/joined_rooms")).body == {"joined_rooms": []}


# -- joining


async def test_joining_asks_the_inviter_s_server_first(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, Any, list[ServerName]]] = []

    class Joins:
        async def join(self, user_id: str, room_id: str, content: Any, servers: list[ServerName]) -> EventId:
            asked.append((user_id, room_id, content, list(servers)))
            return EventId("$tea")

    membership = here.services.room_membership
    monkeypatch.setitem(membership.__dict__, "remote_joins", Joins())
    room = PlayedRoom.new([peer], version="11")
    await room.invite(here, user_of(peer, "tea"), alice.user_id)
    named = {"via": notary.name, "server_name": "old.test"}

    for path in ("join/", "rooms/"):
        end = "" if path == "join/" else "/join"
        uri = f"/_matrix/client/v3/{path}{quote(room.room_id, safe='')}{end}"
        answer = await alice.post(uri, {"reason": "tea"}, named)
        assert (answer.status, answer.body) == (200, {"room_id": room.room_id})
    elsewhere = "!" + "a" * 43
    await alice.post(f"/_matrix/client/v3/join/{elsewhere}", {}, {"via": "no name", "server_name": "b.test"})
    monkeypatch.undo()
    unknown = await alice.post(f"/_matrix/client/v3/join/{elsewhere}", {})
    ours = await alice.post(f"/_matrix/client/v3/join/!tea:{name_of(here)}", {}, {"via": name_of(here)})

    content = {"membership": "join", "reason": "tea"}
    servers = [peer.name, notary.name, "old.test"]
    assert asked == [
        (alice.user_id, room.room_id, content, servers),
        (alice.user_id, room.room_id, content, servers),
        (alice.user_id, elsewhere, {"membership": "join"}, ["b.test"]),
    ]
    assert unknown.error == ours.error == (404, "M_NOT_FOUND")


@versions_of_each_form
async def test_whoever_is_invited_joins_without_naming_a_server(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    rules = {"join_rule": "invite"}
    room = PlayedRoom.new([peer], version=version, join_rules=rules)
    await room.invite(here, user_of(peer, "tea"), alice.user_id)
    since = (await alice.sync())["next_batch"]

    answer = await alice.post(room_path(room.room_id, "join"), {})

    assert (answer.status, answer.body) == (200, {"room_id": room.room_id})
    joined = await wait_for(alice, since, "join", room)
    assert "invite" not in joined["rooms"]
    assert room.events[room.state["m.room.member", alice.user_id]].membership == "join"
    initial = await alice.sync(filter=WITH_LEFT_ROOMS)
    assert list(initial["rooms"]) == ["join"]
    assert (await alice.sync(joined["next_batch"]))["rooms"] == {}


async def test_an_invite_has_been_checked_once_its_room_is_joined(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    database = here.services.room_events.database
    room = PlayedRoom.new([peer], join_rules={"join_rule": "invite"})
    await room.invite(here, user_of(peer, "tea"), alice.user_id)
    query = """
        SELECT count(*), bool_and(auth IS NULL) FROM events JOIN rooms ON rooms.nid = room_nid
        WHERE room_id = $1 AND events.flags & $2 <> 0
    """
    async with database.connection() as tx:
        before = await tx.fetchrow(query, room.room_id, EventFlag.UNCHECKED)
    await alice.post(room_path(room.room_id, "join"), {})
    async with database.connection() as tx:
        after = await tx.fetchrow(query, room.room_id, EventFlag.UNCHECKED)

    assert (tuple(before), tuple(after)) == ((1, True), (0, None))


async def test_who_is_invited_with_another_sees_it_once(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    carol = await here.nobody.register(unique_name("carol"))
    room = PlayedRoom.new([peer], join_rules={"join_rule": "invite"})
    for client in (alice, carol):
        assert (await room.invite(here, user_of(peer, "tea"), client.user_id)).status == 200
    since = (await carol.sync())["next_batch"]

    assert (await alice.post(room_path(room.room_id, "join"), {})).status == 200
    later = await carol.sync(since)
    shown = invited(await carol.sync(), room)
    assert (await leave(carol, room)).status == 200

    assert "leave" not in later["rooms"]
    assert shown[-1]["state_key"] == carol.user_id
    assert {event["type"] for event in shown} >= {"m.room.create", "m.room.member"}
    assert room.room_id in (await carol.sync(since))["rooms"]["leave"]
    assert (await carol.sync())["rooms"] == {}
