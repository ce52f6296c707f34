"""The rooms that peers play are rooms: what other tests build on."""

from __future__ import annotations

from typing import Any

import pytest

from federation.outbound.signed_client import RequestRefused, uri_of
from homeserver.protocol.auth_events import auth_state_keys
from homeserver.protocol.auth_rules import check_auth, check_auth_events
from homeserver.protocol.events import Pdu, parse_pdu
from homeserver.protocol.signing import sign_event
from tests.federation.peers import OurSide, Peer
from tests.federation.played_rooms import V1, V2, PlayedRoom, user_of
from tests.federation.room_answers import accept_invites
from tests.room_versions import versions_of_each_form


async def send_join(ours: OurSide, peer: Peer, room: PlayedRoom, user_id: str) -> Any:
    """What a peer answers to a join of ours."""
    uri = uri_of(f"{V1}/make_join", room.room_id, user_id, query={"ver": room.version.version})
    template = (await ours.client.send("GET", peer.name, uri))["event"]
    join = room.sealed({**template, "signatures": {}}, peer)
    signed = sign_event(room.version, join.json, ours.name, ours.key)
    uri = uri_of(f"{V2}/send_join", room.room_id, join.event_id)
    return await ours.client.send("PUT", peer.name, uri, signed)


async def missing(ours: OurSide, room: PlayedRoom, earliest: Pdu, latest: Pdu) -> list[str]:
    """The texts of the messages between two events."""
    content = {"earliest_events": [earliest.event_id], "latest_events": [latest.event_id], "limit": 10}
    uri = uri_of(f"{V1}/get_missing_events", room.room_id)
    answer = await ours.client.send("POST", room.peers[0].name, uri, content)
    return [json["content"].get("body") for json in answer["events"]]


@versions_of_each_form
async def test_all_events_of_a_played_room_pass_the_rules(
    ours: OurSide, peer: Peer, notary: Peer, version: str
) -> None:
    room = PlayedRoom.new([peer, notary], version=version)
    users = [user_of(peer, "tea"), user_of(notary, "tea")]
    trunk = room.event(users[0], "m.room.topic", {"topic": "tea"}, "")
    fork = room.event(users[1], "m.room.message", {"body": "a fork"}, prev=[trunk])
    room.event(users[0], "m.room.topic", {"topic": "coffee"}, "", prev=[trunk])
    merge = room.event(users[0], "m.room.message", {"body": "merged"})

    answer = await send_join(ours, notary, room, f"@us:{ours.name}")
    pdus = [parse_pdu(room.version, json) for json in [*answer["auth_chain"], *answer["state"]]]
    known = {pdu.event_id: pdu for pdu in pdus}

    assert set(merge.prev_events) >= {fork.event_id} and len(merge.prev_events) == 2
    assert room.events[room.before[merge.event_id]["m.room.topic", ""]].content == {"topic": "coffee"}
    for event in room.events.values():
        state = {key: room.events[event_id] for key, event_id in room.before[event.event_id].items()}
        keys = auth_state_keys(room.version, event.type, event.sender, event.state_key, event.content)
        check_auth(room.version, event, {key: state[key] for key in keys if key in state})
    for event in known.values():
        assert event.json == room.events[event.event_id].json
        check_auth_events(room.version, event, [known[event_id] for event_id in event.auth_events], ())
    assert room.heads == [parse_pdu(room.version, answer["event"]).event_id]
    assert room.state["m.room.member", f"@us:{ours.name}"] == room.heads[0]
    assert [asked.peer for asked in room.requests("send_join")] == [notary]
    assert PlayedRoom.new([peer, notary], version=version).room_id != room.room_id


async def test_a_restricted_played_room_signs_for_those_it_lets_in(ours: OurSide, peer: Peer) -> None:
    room = PlayedRoom.new([peer], version="11", join_rules={"join_rule": "restricted", "allow": []})

    answer = await send_join(ours, peer, room, f"@us:{ours.name}")

    assert answer["event"]["content"]["join_authorised_via_users_server"] == user_of(peer, "tea")
    assert set(answer["event"]["signatures"]) == {ours.name, peer.name}


async def test_what_a_played_room_withholds_is_given_to_nobody(ours: OurSide, peer: Peer) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    first, second, third, last = [
        room.event(tea, "m.room.message", {"body": body}) for body in ("1", "2", "3", "4")
    ]
    before = await missing(ours, room, first, last)
    room.garble(third, content={"body": "garbled"})
    garbled = await missing(ours, room, first, last)
    room.withhold(third)
    withheld = await missing(ours, room, first, last)
    uri = uri_of(f"{V1}/event", third.event_id)
    with pytest.raises(RequestRefused) as not_found:
        await ours.client.send("GET", peer.name, uri)

    assert (before, garbled, withheld) == (["2", "3"], ["2", "garbled"], [])
    assert (not_found.value.status, not_found.value.errcode) == (404, "M_NOT_FOUND")
    assert room.before[last.event_id] == room.before[second.event_id]


async def test_state_is_told_as_the_test_wants_it(ours: OurSide, peer: Peer) -> None:
    room = PlayedRoom.new([peer])
    event = room.event(user_of(peer, "tea"), "m.room.message", {"body": "tea"})
    uris = [
        uri_of(f"{V1}/{endpoint}", room.room_id, query={"event_id": event.event_id})
        for endpoint in ("state", "state_ids")
    ]
    state, ids = [await ours.client.send("GET", peer.name, uri) for uri in uris]
    room.told[event.event_id] = {}
    empty = await ours.client.send("GET", peer.name, uris[1])
    room.fail("state", 403, "M_FORBIDDEN")
    with pytest.raises(RequestRefused) as refused:
        await ours.client.send("GET", peer.name, uris[0])

    assert [parse_pdu(room.version, json).event_id for json in state["pdus"]] == ids["pdu_ids"]
    assert [parse_pdu(room.version, json).event_id for json in state["auth_chain"]] == ids["auth_chain_ids"]
    assert set(ids["pdu_ids"]) == set(room.state.values())
    assert empty == {"pdu_ids": [], "auth_chain_ids": []}
    assert refused.value.status == 403


@versions_of_each_form
async def test_peers_keep_what_they_are_sent(ours: OurSide, peer: Peer, version: str) -> None:
    room = PlayedRoom.new([peer], version=version)
    ours_says = room.event(f"@us:{ours.name}", "m.room.message", {"body": "tea"}, apart=True, signed_by=peer)
    transaction = {"pdus": [ours_says.json], "edus": []}
    room.fail("send", 403, "M_FORBIDDEN")
    with pytest.raises(RequestRefused):
        await ours.client.send("PUT", peer.name, uri_of(f"{V1}/send", "1"), transaction)
    refused = list(peer.transactions)
    del room.answers["send"]
    answer = await ours.client.send("PUT", peer.name, uri_of(f"{V1}/send", "1"), transaction)

    assert (refused, answer) == ([], {"pdus": {}})
    assert [pdu.event_id for pdu in room.sent_to(peer)] == [ours_says.event_id] == room.heads
    assert [transaction.txn_id for transaction in peer.transactions] == ["1"]


async def test_peers_sign_invites(ours: OurSide, peer: Peer) -> None:
    invites = accept_invites(peer)
    room = PlayedRoom.new([peer])
    guest = user_of(peer, "guest")
    invite = room.event(
        user_of(peer, "tea"), "m.room.member", {"membership": "invite"}, guest, apart=True, signatures={}
    )
    content = {"event": invite.json, "room_version": "12", "invite_room_state": []}
    played = await ours.client.send(
        "PUT", peer.name, uri_of(f"{V2}/invite", room.room_id, invite.event_id), content
    )
    elsewhere = await ours.client.send(
        "PUT", peer.name, uri_of(f"{V2}/invite", "!elsewhere", invite.event_id), content
    )

    assert room.heads == [invite.event_id]
    assert played == elsewhere
    assert set(played["event"]["signatures"]) == {peer.name}
    assert invites == [content]
