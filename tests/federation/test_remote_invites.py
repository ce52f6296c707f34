"""Users of ours invite users of other servers, which sign the invite too before it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from homeserver.protocol.events import parse_pdu
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.signing import sign_event
from homeserver.protocol.strict_json import JsonObject
from tests.client_api.rooms import CREATE_ROOM, new_room, room_path
from tests.clients import Client, Response
from tests.federation.homeservers import DENIED, NOBODY_THERE, name_of, new_word
from tests.federation.peers import Answer, Asked, Peer, error_answer, json_answer
from tests.federation.played_rooms import PlayedRoom, user_of
from tests.federation.room_answers import INVITE
from tests.room_versions import versions_of_each_form
from tests.servers import RunningServer, StartServer

FORBIDDEN, NO_ANSWER = (403, "M_FORBIDDEN"), (502, "M_UNKNOWN")


def signed(asked: Asked) -> JsonObject:
    """The invite with the signature of the server that was asked."""
    version = ROOM_VERSIONS[asked.content["room_version"]]
    return sign_event(version, asked.content["event"], asked.peer.name, asked.peer.keys[0])


def accept(asked: Asked) -> Answer:
    return json_answer({"event": signed(asked)})


def take_invites(peer: Peer, answer: Callable[[Asked], Answer] = accept) -> list[Asked]:
    """Let a peer answer invites; what it is asked is in the list."""
    came: list[Asked] = []

    def handler(asked: Asked) -> Answer:
        came.append(asked)
        return answer(asked)

    peer.route("PUT", INVITE, handler)
    return came


async def invite(client: Client, room_id: str, user_id: str, **content: Any) -> Response:
    return await client.post(room_path(room_id, "invite"), {"user_id": user_id, **content})


async def member(client: Client, room_id: str, user_id: str) -> dict[str, Any] | None:
    """What a room's state says of a user; None for nothing."""
    answer = await client.get(room_path(room_id, "state", "m.room.member", user_id))
    assert answer.status in (200, 404)
    return answer.body if answer.status == 200 else None


async def wait_for_invite(client: Client, room_id: str) -> list[Any]:
    """Sync until a room is among those that a user is invited to."""
    since = None
    async with asyncio.timeout(10):
        while True:
            answer = await client.sync(since, timeout=5000)
            if room_id in answer["rooms"].get("invite", {}):
                events: list[Any] = answer["rooms"]["invite"][room_id]["invite_state"]["events"]
                return events
            since = answer["next_batch"]


@versions_of_each_form
async def test_a_user_of_another_server_is_invited(alice: Client, bob: Client, version: str) -> None:
    room_id = await new_room(alice, room_version=version, name="Tea", preset="private_chat")
    since = (await alice.sync())["next_batch"]

    answer = await invite(alice, room_id, bob.user_id, reason="tea")

    assert (answer.status, answer.body) == (200, {})
    shown = {event["type"]: event for event in await wait_for_invite(bob, room_id)}
    assert shown["m.room.create"]["sender"] == alice.user_id
    assert ("origin_server_ts" in shown["m.room.create"]) == (version == "12")
    assert shown["m.room.name"]["content"] == {"name": "Tea"}
    assert shown["m.room.join_rules"]["content"] == {"join_rule": "invite"}
    assert shown["m.room.member"]["content"] == {"membership": "invite", "reason": "tea"}
    assert shown["m.room.member"]["state_key"] == bob.user_id
    timeline = (await alice.sync(since))["rooms"]["join"][room_id]["timeline"]["events"]
    assert [event["content"] for event in timeline] == [{"membership": "invite", "reason": "tea"}]


@versions_of_each_form
async def test_whoever_is_invited_joins_or_leaves_and_the_inviter_sees_it(
    there: RunningServer, alice: Client, bob: Client, version: str
) -> None:
    carol = await there.nobody.register(f"carol-{new_word()}")
    room_id = await new_room(alice, room_version=version, preset="private_chat")
    for client in (bob, carol):
        assert (await invite(alice, room_id, client.user_id)).status == 200
        await wait_for_invite(client, room_id)

    assert (await carol.post(room_path(room_id, "leave"), {"reason": "no"})).status == 200
    assert await member(alice, room_id, carol.user_id) == {"membership": "leave", "reason": "no"}
    assert (await bob.post(room_path(room_id, "join"), {})).status == 200
    assert await member(alice, room_id, bob.user_id) == {"membership": "join"}
    assert await member(bob, room_id, carol.user_id) == {"membership": "leave", "reason": "no"}
    assert (await carol.sync())["rooms"] == {}
    assert list((await bob.sync())["rooms"]) == ["join"]


async def test_an_invite_to_a_room_that_everybody_left_can_be_rejected(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice, preset="private_chat")
    await invite(alice, room_id, bob.user_id)
    await wait_for_invite(bob, room_id)
    since = (await bob.sync())["next_batch"]
    assert (await alice.post(room_path(room_id, "leave"), {})).status == 200

    assert (await bob.post(room_path(room_id, "leave"), {})).status == 200

    assert room_id in (await bob.sync(since))["rooms"]["leave"]
    assert (await bob.sync())["rooms"] == {}


async def test_the_inviter_is_shown_with_its_profile(alice: Client, bob: Client) -> None:
    path = f"/_matrix/client/v3/profile/{alice.user_id}/displayname"
    assert (await alice.put(path, {"displayname": "Alice"})).status == 200
    room_id = await new_room(alice)
    await invite(alice, room_id, bob.user_id)

    members = {
        event["state_key"]: event["content"]
        for event in await wait_for_invite(bob, room_id)
        if event["type"] == "m.room.member"
    }

    assert members == {
        alice.user_id: {"membership": "join", "displayname": "Alice"},
        bob.user_id: {"membership": "invite"},
    }


@versions_of_each_form
async def test_what_another_server_gets_with_an_invite(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    came = take_invites(peer)
    room_id = await new_room(alice, room_version=version, name="Tea", topic="Tea", invite=[])
    tea = user_of(peer, "tea")

    assert (await invite(alice, room_id, tea)).status == 200

    [asked] = came
    assert asked.content.keys() == {"room_version", "event", "invite_room_state"}
    assert asked.content["room_version"] == version
    assert asked.names["room_id"] == room_id
    event = asked.content["event"]
    pdu = parse_pdu(ROOM_VERSIONS[version], event)
    assert (pdu.event_id, pdu.room_id, pdu.key) == (
        asked.names["event_id"],
        room_id,
        ("m.room.member", tea),
    )
    assert event["signatures"].keys() == {name_of(here)}
    state = [parse_pdu(ROOM_VERSIONS[version], json) for json in asked.content["invite_room_state"]]
    assert {one.room_id for one in state} == {room_id}
    assert all(one.json["signatures"].keys() == {name_of(here)} for one in state)
    assert {one.key for one in state} == {
        ("m.room.create", ""),
        ("m.room.join_rules", ""),
        ("m.room.name", ""),
        ("m.room.topic", ""),
        ("m.room.member", alice.user_id),
    }
    assert ("room_id" in state[0].json) == (version != "12")


async def test_what_is_stored_of_an_invite_has_both_signatures_and_nothing_else_of_the_other_server(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    came = take_invites(
        peer, lambda asked: json_answer({"event": {**signed(asked), "unsigned": {"x": 1}}, "x": 1})
    )
    room_id = await new_room(alice)
    tea = user_of(peer, "tea")

    assert (await invite(alice, room_id, tea)).status == 200

    federated = {"event_format": "federation", "room": {"timeline": {"limit": 100}}}
    room = (await alice.sync(filter=federated))["rooms"]["join"][room_id]
    [event] = [event for event in room["timeline"]["events"] if event.get("state_key") == tea]
    assert event["signatures"] == signed(came[0])["signatures"]
    assert event["signatures"].keys() == {name_of(here), peer.name}
    assert "x" not in event.get("unsigned", {})


async def test_inviting_again_asks_again_only_for_something_new(peer: Peer, alice: Client) -> None:
    came = take_invites(peer)
    room_id = await new_room(alice)
    tea = user_of(peer, "tea")

    for reason in ({}, {}, {"reason": "more tea"}, {"reason": "more tea"}):
        assert (await invite(alice, room_id, tea, **reason)).status == 200

    assert [asked.content["event"]["content"].get("reason") for asked in came] == [None, "more tea"]


async def test_an_invite_as_a_state_event_is_one_all_the_same(peer: Peer, alice: Client) -> None:
    came = take_invites(peer)
    room_id = await new_room(alice)
    tea = user_of(peer, "tea")

    answer = await alice.put(
        room_path(room_id, "state", "m.room.member", tea), {"membership": "invite", "displayname": "Tea"}
    )

    assert answer.status == 200
    assert answer.body["event_id"] == came[0].names["event_id"]
    assert await member(alice, room_id, tea) == {"membership": "invite", "displayname": "Tea"}


@pytest.mark.parametrize(
    ("status", "errcode", "error"),
    [
        (403, "M_FORBIDDEN", FORBIDDEN),
        (403, "", FORBIDDEN),
        (403, "M_INVITE_BLOCKED", (403, "M_INVITE_BLOCKED")),
        (404, "M_NOT_FOUND", (404, "M_NOT_FOUND")),
        (404, "M_UNRECOGNIZED", (400, "M_UNSUPPORTED_ROOM_VERSION")),
        (400, "M_UNRECOGNIZED", (400, "M_UNSUPPORTED_ROOM_VERSION")),
        (400, "M_INCOMPATIBLE_ROOM_VERSION", (400, "M_UNSUPPORTED_ROOM_VERSION")),
        (400, "M_UNSUPPORTED_ROOM_VERSION", (400, "M_UNSUPPORTED_ROOM_VERSION")),
        (404, "", NO_ANSWER),
        (400, "M_INVALID_PARAM", NO_ANSWER),
        (400, "M_MISSING_PARAM", NO_ANSWER),
        (429, "M_LIMIT_EXCEEDED", NO_ANSWER),
        (500, "M_UNKNOWN", NO_ANSWER),
    ],
)
async def test_an_invite_that_the_other_server_refuses_is_none(
    peer: Peer, alice: Client, status: int, errcode: str, error: tuple[int, str]
) -> None:
    came = take_invites(peer, lambda _asked: error_answer(status, errcode))
    room_id = await new_room(alice)
    tea = user_of(peer, "tea")

    assert (await invite(alice, room_id, tea)).error == error

    assert len(came) == 1
    assert await member(alice, room_id, tea) is None


@pytest.mark.invariant("SEC-SIGN-2")
async def test_sec_sign_2_only_the_same_invite_with_a_good_signature_is_taken_back(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    version = ROOM_VERSIONS["12"]

    def signed_by(asked: Asked, signer: Peer, name: str | None = None, **changes: Any) -> JsonObject:
        return sign_event(
            version,
            {**asked.content["event"], **changes},
            name or signer.name,  # type: ignore[arg-type]
            signer.keys[0],
        )

    answers: list[Callable[[Asked], Any]] = [
        lambda asked: {"event": asked.content["event"]},
        lambda asked: {"event": signed_by(asked, notary)},
        lambda asked: {"event": signed_by(asked, notary, peer.name)},
        lambda asked: {"event": signed_by(asked, peer, depth=99)},
        lambda asked: {"event": signed_by(asked, peer, state_key=user_of(peer, "milk"))},
        lambda asked: {"event": signed_by(asked, peer, signatures={})},
        lambda asked: {"event": {**signed(asked), "signatures": {peer.name: "x"}}},
        lambda asked: {"event": {**signed(asked), "signatures": []}},
        lambda asked: {"event": [signed(asked)]},
        lambda _asked: {"event": {}},
        lambda _asked: {},
        lambda asked: [200, {"event": signed(asked)}],
    ]
    room_id = await new_room(alice)
    tea = user_of(peer, "tea")
    for answer in answers:
        came = take_invites(peer, lambda asked, given=answer: json_answer(given(asked)))  # type: ignore[misc]
        assert (await invite(alice, room_id, tea)).error == NO_ANSWER
        assert len(came) == 1
        await here.services.destinations.succeeded(peer.name)
    assert await member(alice, room_id, tea) is None
    take_invites(peer)
    assert (await invite(alice, room_id, tea)).status == 200


@pytest.mark.invariant("SEC-SIGN-3")
async def test_sec_sign_3_how_long_a_key_is_valid_counts_since_version_5(peer: Peer, alice: Client) -> None:
    take_invites(peer)
    peer.valid_until_ts = peer.clock() - 3600_000
    tea = user_of(peer, "tea")
    old, newer = [await new_room(alice, room_version=version) for version in ("4", "5")]

    assert (await invite(alice, old, tea)).status == 200
    assert (await invite(alice, newer, tea)).error == NO_ANSWER

    assert await member(alice, old, tea) == {"membership": "invite"}
    assert await member(alice, newer, tea) is None


async def test_whose_server_cannot_be_reached_is_not_invited(
    alice: Client, start_server: StartServer
) -> None:
    room_id = await new_room(alice)
    for server_name, error in ((NOBODY_THERE, NO_ANSWER), (DENIED, FORBIDDEN)):
        user_id = f"@tea:{server_name}"
        assert (await invite(alice, room_id, user_id)).error == error
        assert await member(alice, room_id, user_id) is None

    alone = await start_server(federation={"enabled": False})
    carol = await alone.nobody.register(f"carol-{new_word()}")
    assert (await invite(carol, await new_room(carol), f"@tea:{NOBODY_THERE}")).error == FORBIDDEN


async def test_the_rules_decide_before_another_server_is_asked(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    came = take_invites(peer)
    tea = user_of(peer, "tea")
    carol = await here.nobody.register(f"carol-{new_word()}")
    room_id = await new_room(alice)
    closed = await new_room(alice, creation_content={"m.federate": False})
    await alice.post(room_path(room_id, "ban"), {"user_id": tea})

    assert (await invite(alice, room_id, tea)).error == FORBIDDEN
    assert (await invite(carol, room_id, user_of(peer, "milk"))).error == FORBIDDEN
    assert (await invite(carol, "!" + "a" * 43, user_of(peer, "milk"))).error == FORBIDDEN
    assert (await invite(alice, closed, user_of(peer, "milk"))).error == FORBIDDEN
    assert (await invite(alice, room_id, user_of(peer, "milk"), reason="x" * 70_000)).error == (
        413,
        "M_TOO_LARGE",
    )
    assert came == []


async def test_an_invite_is_refused_that_the_room_does_not_allow_any_more(peer: Peer, alice: Client) -> None:
    room_id = await new_room(alice)
    tea = user_of(peer, "tea")

    async def ban_meanwhile(asked: Asked) -> Answer:
        assert (await alice.post(room_path(room_id, "ban"), {"user_id": tea})).status == 200
        return accept(asked)

    peer.route("PUT", INVITE, ban_meanwhile)

    assert (await invite(alice, room_id, tea)).error == FORBIDDEN
    assert await member(alice, room_id, tea) == {"membership": "ban"}


async def test_what_happens_meanwhile_does_not_change_an_invite(peer: Peer, alice: Client) -> None:
    room_id = await new_room(alice)
    tea = user_of(peer, "tea")

    async def talk_meanwhile(asked: Asked) -> Answer:
        await alice.say(room_id, "meanwhile")
        return accept(asked)

    peer.route("PUT", INVITE, talk_meanwhile)

    assert (await invite(alice, room_id, tea)).status == 200
    assert await member(alice, room_id, tea) == {"membership": "invite"}
    await alice.say(room_id, "and afterwards")


# -- new rooms


@versions_of_each_form
async def test_users_of_other_servers_are_invited_to_a_new_room(
    here: RunningServer, peer: Peer, alice: Client, bob: Client, version: str
) -> None:
    came = take_invites(peer, lambda _asked: error_answer(403, "M_FORBIDDEN"))
    carol = await here.nobody.register(f"carol-{new_word()}")
    refused, unreachable = user_of(peer, "tea"), f"@tea:{NOBODY_THERE}"
    invited = [refused, unreachable, bob.user_id, carol.user_id, f"@milk:{NOBODY_THERE}", bob.user_id]

    answer = await alice.post(
        CREATE_ROOM,
        {
            "preset": "private_chat",
            "invite": invited,
            "is_direct": True,
            "room_version": version,
            "name": "Tea",
        },
    )

    assert answer.status == 200, answer.body
    room_id = answer.body["room_id"]
    content = {"membership": "invite", "is_direct": True}
    assert await member(alice, room_id, bob.user_id) == content
    assert await member(alice, room_id, carol.user_id) == content
    assert await member(alice, room_id, refused) is None
    assert await member(alice, room_id, unreachable) is None
    assert len(came) == 1
    shown = await wait_for_invite(bob, room_id)
    assert shown[-1]["content"] == content
    assert room_id in (await carol.sync())["rooms"]["invite"]


async def test_who_is_trusted_from_the_start_may_be_of_another_server(peer: Peer, alice: Client) -> None:
    take_invites(peer)
    tea = user_of(peer, "tea")

    room_id = await new_room(alice, preset="trusted_private_chat", invite=[tea])
    older = await new_room(alice, preset="trusted_private_chat", invite=[tea], room_version="11")

    create = await alice.get(room_path(room_id, "state", "m.room.create", ""))
    levels = await alice.get(room_path(older, "state", "m.room.power_levels", ""))
    assert create.body["additional_creators"] == [tea]
    assert levels.body["users"] == {alice.user_id: 100, tea: 100}
    for room in (room_id, older):
        assert (await member(alice, room, tea) or {})["membership"] == "invite"


async def test_a_server_that_is_in_the_room_is_asked_too(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room_id = await new_room(alice)
    await PlayedRoom.entered(here, [peer], user_of(peer, "tea"), room_id)
    came = take_invites(peer)

    assert (await invite(alice, room_id, user_of(peer, "milk"))).status == 200

    assert len(came) == 1
    assert await member(alice, room_id, user_of(peer, "milk")) == {"membership": "invite"}
