"""Rooms of old versions as hostile servers use them: event IDs twice, numbers of any size, false versions."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from canonicaljson import encode_canonical_json

from federation.outbound.signed_client import uri_of
from homeserver.protocol.room_versions import room_version
from tests.client_api.rooms import new_room, room_path, set_state
from tests.clients import Client
from tests.federation.homeservers import ask, new_word
from tests.federation.joined_rooms import comes, is_shown, join_by, joined, state_of
from tests.federation.peers import Asked, Peer
from tests.federation.played_rooms import V1, V2, PlayedRoom, send, user_of
from tests.federation.room_answers import ENDPOINTS, accept_invites
from tests.room_versions import versions_of_each_form
from tests.servers import RunningServer, unique_name

HUGE: Final = 10**400
"""No double is so great."""


def chosen(peer: Peer) -> str:
    return f"${new_word()}:{peer.name}"


async def invite(
    server: RunningServer, peer: Peer, room: PlayedRoom, user_id: str, **overrides: Any
) -> tuple[int, Any]:
    """A user of a peer invites one of ours."""
    content = overrides.pop("content", {"membership": "invite"})
    sender = overrides.pop("sender", user_of(peer, "tea"))
    event = room.event(sender, "m.room.member", content, user_id, apart=True, **overrides)
    body = {"room_version": room.version.version, "event": event.json, "invite_room_state": []}
    uri = uri_of(f"{V2}/invite", room.room_id, event.event_id)
    answer = await ask(server, peer, uri, body, method="PUT")
    return answer.status, answer.body


# --- Event IDs that two events have


@pytest.mark.invariant("SEC-FED-2")
@pytest.mark.parametrize("version", ["1", "2"])
async def test_sec_fed_2_an_id_that_another_room_has_names_no_event_and_stops_nothing(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, version: str
) -> None:
    tea, evil = user_of(peer, "tea"), user_of(notary, "evil")
    own = PlayedRoom.new([notary], version=version, members=[evil])
    shared = PlayedRoom.new([peer, notary], version=version, members=[tea, evil])
    await joined(alice, own)
    await joined(alice, shared)
    event_id = chosen(notary)
    first = own.event(evil, "m.room.message", {"body": "first"}, event_id=event_id)
    assert (await send(here, notary, [first])).body["pdus"] == {event_id: {}}

    heads = shared.heads
    second = shared.event(evil, "m.room.message", {"body": "second"}, event_id=event_id)
    assert "error" in (await send(here, notary, [second])).body["pdus"][event_id]
    shared.heads = heads
    await send(here, peer, [shared.event(tea, "m.room.message", {"body": "honest"})])

    assert await comes(alice, shared, "honest")
    assert await comes(alice, own, "first")
    assert not await is_shown(alice, shared, second)


async def test_an_invite_under_the_id_of_another_event_is_refused(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    tea, bob = user_of(peer, "tea"), await here.nobody.register(unique_name("bob"))
    room, other = (PlayedRoom.new([peer], version="1") for _ in range(2))
    await joined(alice, room)
    event_id = chosen(peer)
    await send(here, peer, [room.event(tea, "m.room.message", {"body": "tea"}, event_id=event_id)])

    assert (await invite(here, peer, other, bob.user_id, event_id=event_id))[0] == 400
    assert (await invite(here, peer, other, bob.user_id))[0] == 200
    assert list((await bob.sync())["rooms"]["invite"]) == [other.room_id]
    assert await alice.say(room.room_id, "all goes on")


async def test_a_state_is_not_that_of_another_room(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    tea, evil = user_of(peer, "tea"), user_of(notary, "evil")
    event_id, levels = chosen(notary), {"users": {tea: 100, evil: 50}, "state_default": 50}
    own = PlayedRoom.new([notary], version="1", members=[evil])
    await joined(alice, own)
    forged = {"users": {evil: 100, alice.user_id: 100}}
    await send(here, notary, [own.event(evil, "m.room.power_levels", forged, "", event_id=event_id)])
    room = PlayedRoom.new([peer, notary], version="1", members=[tea, evil], power_levels=levels)
    room.event(evil, "m.room.power_levels", levels, "", event_id=event_id)

    await join_by(alice, room.room_id, peer.name)

    assert await state_of(alice, room, "m.room.power_levels") != forged
    answer = await alice.put(room_path(room.room_id, "state", "m.room.topic", ""), {"topic": "mine"})
    assert answer.status in (403, 404)


# --- Versions that are claimed


@pytest.mark.parametrize("version", ["2", "3", "10"])
async def test_an_invite_does_not_change_the_version_of_a_room_that_is_being_joined(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, version: str
) -> None:
    bob = await here.nobody.register(unique_name("bob"))
    room = PlayedRoom.new([peer], version=version)
    claimed = PlayedRoom(room_version("1"), [notary], room.room_id)

    async def meanwhile(asked: Asked) -> Any:
        evil = user_of(notary, "evil")
        assert (await invite(here, notary, claimed, bob.user_id, sender=evil))[0] == 200
        return ENDPOINTS["send_join"][2](room, asked)

    room.answers["send_join"] = meanwhile
    await joined(alice, room)

    said = room.event(user_of(peer, "tea"), "m.room.message", {"body": "hello"})
    assert (await send(here, peer, [said])).body["pdus"] == {said.event_id: {}}
    assert await comes(alice, room, "hello")
    event_id = await alice.say(room.room_id, "hello")
    assert event_id.endswith(alice.user_id.partition(":")[2]) == (version == "2")


async def test_an_invite_keeps_its_version_whatever_others_claim(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    bob = await here.nobody.register(unique_name("bob"))
    room = PlayedRoom.new([peer], version="10", join_rules={"join_rule": "invite"})
    tea = user_of(peer, "tea")
    invited = room.event(tea, "m.room.member", {"membership": "invite"}, alice.user_id)
    body = {"room_version": "10", "event": invited.json, "invite_room_state": []}
    uri = uri_of(f"{V2}/invite", room.room_id, invited.event_id)
    assert (await ask(here, peer, uri, body, method="PUT")).status == 200
    claimed = PlayedRoom(room_version("1"), [notary], room.room_id)
    evil = user_of(notary, "evil")
    assert (await invite(here, notary, claimed, bob.user_id, sender=evil))[0] == 200

    assert (await alice.post(room_path(room.room_id, "leave"), {})).status == 200
    assert [endpoint for endpoint, _ in room.asked] == ["make_leave", "send_leave"]


async def test_an_invite_is_withdrawn_whatever_version_others_claim(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    bob = await here.nobody.register(unique_name("bob"))
    room = PlayedRoom.new([peer], version="10")
    claimed, evil = PlayedRoom(room_version("1"), [notary], room.room_id), user_of(notary, "evil")
    assert (await invite(here, notary, claimed, bob.user_id, sender=evil))[0] == 200
    tea = user_of(peer, "tea")
    assert (await room.invite(here, tea, alice.user_id)).status == 200

    kick = room.event(tea, "m.room.member", {"membership": "leave"}, alice.user_id)
    assert (await send(here, peer, [kick])).body == {"pdus": {kick.event_id: {}}}

    assert (await alice.sync())["rooms"] == {}
    assert list((await bob.sync())["rooms"]["invite"]) == [room.room_id]


# --- Numbers and depths


@pytest.mark.invariant("SEC-JSON-2")
@pytest.mark.parametrize("version", ["1", "5"])
async def test_sec_json_2_numbers_of_any_size_stop_no_answer(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    await joined(alice, room)
    tea, odd = user_of(peer, "tea"), {"n": HUGE, "f": 1.5e-7}
    since = (await alice.sync())["next_batch"]
    events = [
        room.event(tea, "m.room.member", {"membership": "join", **odd}, tea),
        room.event(tea, "m.room.member", {"membership": "join", "displayname": "Tea", **odd}, tea),
        room.event(tea, "m.room.name", {"name": "Tea", **odd}, ""),
        room.event(tea, "m.room.history_visibility", {"history_visibility": "shared", **odd}, ""),
        room.event(tea, "m.room.message", {"body": "tea", **odd}),
    ]
    for event in events:
        assert (await send(here, peer, [event])).body["pdus"] == {event.event_id: {}}
    assert await comes(alice, room, "tea")

    fields = '{"event_fields":["content"]}'
    for filter_ in ("{}", fields, '{"event_format":"federation"}'):
        for query in ({}, {"since": since}):
            answer = await alice.get("/_matrix/client/v3/sync", {"filter": filter_, **query})
            assert answer.status == 200
            assert str(HUGE) in str(answer.body)
    for path in ("messages?dir=b", "state", "members", f"context/{events[-1].event_id}", "joined_members"):
        assert (await alice.get(f"{room_path(room.room_id)}/{path}")).status == 200
    for uri in (
        uri_of(f"{V1}/event", events[-1].event_id),
        uri_of(f"{V1}/state", room.room_id, query={"event_id": events[-1].event_id}),
        uri_of(f"{V1}/event_auth", room.room_id, events[-1].event_id),
        uri_of(f"{V1}/backfill", room.room_id, query={"v": events[-1].event_id, "limit": "10"}),
    ):
        assert (await ask(here, peer, uri)).status == 200

    event_id = await alice.in_room("PUT", room.room_id, f"send/x/{new_word()}", odd)
    assert (await alice.get(room_path(room.room_id, "event", event_id["event_id"]))).body["content"] == odd
    await alice.in_room("POST", room.room_id, "leave", {})
    assert (await joined(alice, room, n=HUGE)).content["n"] == HUGE


@pytest.mark.invariant("SEC-JSON-2")
async def test_sec_json_2_who_joins_with_numbers_of_any_size_is_answered(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room_id, milk = await new_room(alice, room_version="5"), user_of(peer, "milk")
    room = await PlayedRoom.entered(here, [peer], user_of(peer, "tea"), room_id)
    join = room.event(milk, "m.room.member", {"membership": "join", "n": HUGE}, milk, apart=True)

    answer = await ask(here, peer, uri_of(f"{V2}/send_join", room_id, join.event_id), join.json, method="PUT")

    assert answer.status == 200, answer.body
    assert (await state_of(alice, room, "m.room.member", milk))["n"] == HUGE


@pytest.mark.invariant("SEC-JSON-2")
@pytest.mark.parametrize("version", ["1", "5"])
async def test_sec_json_2_an_invite_with_numbers_of_any_size_is_taken(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room, content = PlayedRoom.new([peer], version=version), {"membership": "invite", "n": HUGE, "f": 1.5e-7}

    assert (await invite(here, peer, room, alice.user_id, content=content))[0] == 200

    shown = (await alice.sync())["rooms"]["invite"][room.room_id]["invite_state"]["events"]
    assert content in [event["content"] for event in shown]


@pytest.mark.invariant("SEC-JSON-2")
@pytest.mark.parametrize("version", ["1", "5"])
async def test_sec_json_2_an_invite_to_a_room_with_numbers_of_any_size_is_signed_as_others_read_it(
    peer: Peer, alice: Client, version: str
) -> None:
    invites = accept_invites(peer)
    room_id, tea = await new_room(alice, room_version=version), user_of(peer, "tea")
    await set_state(alice, room_id, "m.room.avatar", {"url": "mxc://x/y", "info": {"n": HUGE, "f": 1.5e-7}})

    answer = await alice.post(room_path(room_id, "invite"), {"user_id": tea})

    assert answer.status == 200, answer.body
    [avatar] = [event for event in invites[0]["invite_room_state"] if event["type"] == "m.room.avatar"]
    assert avatar["content"]["info"] == {"n": HUGE, "f": 1.5e-7}
    bodies = [request.body for request in peer.server.received if "/invite/" in request.target]
    assert bodies == [encode_canonical_json(json.loads(body)) for body in bodies]


async def test_a_room_at_the_greatest_depth_is_joined_and_goes_on(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer], version="4")
    room.event(user_of(peer, "tea"), "m.room.message", {"body": "deep"}, depth=2**63 - 1)
    assert (await joined(alice, room)).depth == 2**63 - 1
    assert await alice.say(room.room_id, "deep")


@pytest.mark.invariant("SEC-FED-2")
@versions_of_each_form
async def test_sec_fed_2_an_event_that_is_nested_too_deep_spoils_no_other(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room, tea = PlayedRoom.new([peer], version=version), user_of(peer, "tea")
    content: dict[str, Any] = {}
    for _ in range(62):
        content = {"a": content}
    room.event(tea, "org.example.deep", content, "", apart=True)
    await joined(alice, room)
    heads = room.heads
    deep = room.event(tea, "m.room.message", {"a": content})
    room.heads = heads
    fine = room.event(tea, "m.room.message", {"body": "fine"})

    answer = await send(here, peer, [deep, fine])

    assert answer.body["pdus"] == {fine.event_id: {}}
    assert await comes(alice, room, "fine")
