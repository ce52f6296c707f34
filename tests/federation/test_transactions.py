"""Transactions of other servers: what is bad in one spoils nothing else, and all has its limits."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from federation.inbound.transactions import MAX_TRANSACTION_BYTES
from federation.outbound.signed_client import uri_of
from homeserver.protocol.events import MAX_AUTH_EVENTS, MAX_EVENT_BYTES, MAX_PREV_EVENTS, Pdu
from homeserver.protocol.identifiers import EventId
from homeserver.services.missing_events import MissingEvents
from homeserver.services.received_transactions import MAX_EDUS, MAX_PDUS
from storage.event_batch import EventBatch, NewEvent
from storage.room_heads import RoomHead, RoomRef
from tests.clients import Client, Response
from tests.federation.homeservers import ask
from tests.federation.joined_rooms import is_shown, joined, state_of
from tests.federation.peers import KEY_LIST, Peer
from tests.federation.played_rooms import V1, PlayedRoom, send, user_of
from tests.federation.waiting import given_up, until, until_said
from tests.room_versions import versions_of_each_form
from tests.servers import RunningServer


def text(body: str) -> dict[str, Any]:
    return {"msgtype": "m.text", "body": body}


def bad_events(room: PlayedRoom, sender: str) -> dict[str, Any]:
    """What no server may send, by what is wrong with it; as JSON that can be signed as part of a request."""

    def made(body: str = "", **overrides: Any) -> dict[str, Any]:
        return room.event(sender, "m.room.message", text(body or uuid4().hex), apart=True, **overrides).json

    nowhere = [EventId(f"${number:043}") for number in range(30)]
    good = made()
    return {
        "no object": "an event",
        "nothing in it": {"room_id": room.room_id},
        "no content": {**good, "content": "text"},
        "no sender": {key: value for key, value in good.items() if key != "sender"},
        "another's signature": {**good, "signatures": {"elsewhere.test": {"ed25519:a": "c2lnbmF0dXJl"}}},
        "changed after it was signed": {**good, "depth": good["depth"] + 1},
        "a state key that is none": {**good, "state_key": 7},
        "a negative depth": made(depth=-1),
        "too many previous events": made(prev=nowhere[: MAX_PREV_EVENTS + 1]),
        "too many auth events": made(auth=nowhere[: MAX_AUTH_EVENTS + 1]),
        "a type that is too long": made(type="t" * 256),
        "a state key that is too long": made(state_key="é" * 256),
        "a sender that is too long": {**good, "sender": f"@{'a' * 250}:{room.peers[0].name}"},
        "more bytes than an event may have": made("b" * MAX_EVENT_BYTES),
        "previous events that are no list": {**good, "prev_events": "$one"},
        "hashes that are none": {**good, "hashes": ["sha256"]},
        "an unknown room": {**good, "room_id": f"!unknown{good['room_id'][8:]}"},
        "no room": {key: value for key, value in good.items() if key != "room_id"},
    }


async def send_raw(server: RunningServer, peer: Peer, content: dict[str, Any]) -> Response:
    uri = uri_of(f"{V1}/send", uuid4().hex)
    return await ask(server, peer, uri, {"origin": peer.name, "origin_server_ts": 0, **content}, method="PUT")


@pytest.mark.invariant("SEC-FED-2")
@pytest.mark.invariant("SEC-SIZE-1")
@versions_of_each_form
async def test_sec_fed_2_and_sec_size_1_bad_events_spoil_no_others_in_their_transaction(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    await joined(alice, room)
    tea = user_of(peer, "tea")
    bad = bad_events(room, tea)
    before, after = (room.event(tea, "m.room.message", text(body)) for body in ("before", "after"))
    for name, json in bad.items():
        assert (await send(here, peer, [json])).status == 200, name
    answer = await send(here, peer, [before, *bad.values(), after])

    assert answer.status == 200
    results = answer.body["pdus"]
    assert (results[before.event_id], results[after.event_id]) == ({}, {})
    assert all("error" in result for event_id, result in results.items() if event_id not in room.events)
    await until_said(alice, room, "before", "after")
    events = (await alice.in_room("GET", room.room_id, "messages?dir=b&limit=100"))["chunk"]
    assert {event["event_id"] for event in events} <= set(room.events)


@pytest.mark.invariant("SEC-FED-2")
async def test_sec_fed_2_an_event_that_breaks_the_storage_stops_no_other(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, other = PlayedRoom.new([peer]), PlayedRoom.new([peer])
    await joined(alice, room)
    await joined(alice, other)
    tea = user_of(peer, "tea")
    first, poison, last = (
        room.event(tea, "m.room.message", text(body)) for body in ("first", "poison", "last")
    )
    elsewhere = other.event(tea, "m.room.message", text("elsewhere"))
    add_event = EventBatch.add_event

    def refuse(batch: EventBatch, ref: RoomRef, event: NewEvent) -> None:
        if event.pdu.event_id == poison.event_id:
            raise OverflowError("no row can be made of this")
        add_event(batch, ref, event)

    monkeypatch.setattr(EventBatch, "add_event", refuse)
    answer = await send(here, peer, [first, elsewhere, poison])
    assert answer.status == 200
    await until_said(alice, room, "first")
    await until_said(alice, other, "elsewhere")
    # What builds on it lacks a parent that cannot be had; that is given up, and the room goes on.
    await send(here, peer, [last])
    await until(lambda: given_up(here, room))
    monkeypatch.undo()
    for event in (poison, last):
        assert not await is_shown(alice, room, event)
    await send(here, peer, [poison, last])
    await until_said(alice, room, "poison", "last")


@pytest.mark.invariant("SEC-FED-2")
async def test_sec_fed_2_an_event_that_breaks_what_places_it_is_given_up(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue of what waits in a room does not stop at what it cannot work off."""
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea = user_of(peer, "tea")
    fork = room.heads
    missing, poison = (room.event(tea, "m.room.message", text(body)) for body in ("missing", "poison"))
    good = room.event(tea, "m.room.message", text("good"), prev=fork)
    before = MissingEvents.before

    async def fail(
        missing_events: MissingEvents, ref: RoomRef, head: RoomHead, pdu: Pdu, servers: Any
    ) -> Any:
        if pdu.event_id == poison.event_id:
            raise ValueError("nothing can be made of this")
        return await before(missing_events, ref, head, pdu, servers)

    monkeypatch.setattr(MissingEvents, "before", fail)
    assert (await send(here, peer, [poison, good])).status == 200
    await until_said(alice, room, "good")
    await until(lambda: given_up(here, room))
    assert not await is_shown(alice, room, poison)
    assert missing.event_id in poison.prev_events


@pytest.mark.invariant("SEC-FED-3")
async def test_sec_fed_3_nobody_is_asked_for_keys_for_a_server_that_the_acl_denies(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    tea, coffee = user_of(peer, "tea"), user_of(notary, "coffee")
    room = PlayedRoom.new([peer, notary], members=[tea, coffee], power_levels={"events_default": 0})
    await joined(alice, room)
    denied = peer.name.rsplit(":", 1)[0]
    acl = room.event(tea, "m.room.server_acl", {"allow": ["*"], "deny": [denied]}, "")
    assert (await send(here, notary, [acl])).body == {"pdus": {acl.event_id: {}}}
    unknown_key = {peer.name: {"ed25519:unknown": "A" * 86}}
    event = room.event(tea, "m.room.message", text("denied"), signatures=unknown_key)
    asked = peer.asked(KEY_LIST)
    answer = (await send(here, peer, [event])).body
    assert answer == {"pdus": {event.event_id: {"error": "the room's server ACL forbids it"}}}
    assert peer.asked(KEY_LIST) == asked


@pytest.mark.invariant("SEC-SIZE-1")
async def test_sec_size_1_a_transaction_has_so_many_events_and_no_more(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea = user_of(peer, "tea")
    events: list[Pdu] = [
        room.event(tea, "m.room.message", text(f"message {number}")) for number in range(MAX_PDUS + 1)
    ]
    answer = await send(here, peer, events)
    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")
    edus = [{"edu_type": "m.typing", "content": {}}] * (MAX_EDUS + 1)
    assert (await send(here, peer, [], edus)).status == 400
    assert not await is_shown(alice, room, events[0])
    assert (await send(here, peer, events[:MAX_PDUS], edus[:MAX_EDUS])).status == 200
    await until_said(alice, room, "message 49")


@pytest.mark.invariant("SEC-SIZE-1")
async def test_sec_size_1_an_event_may_be_as_large_as_the_specification_says(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea = user_of(peer, "tea")
    for body in ("b" * 64_000, "c" * MAX_EVENT_BYTES):
        event = room.event(tea, "m.room.topic", {"topic": body}, "", apart=True)
        answer = await send(here, peer, [event])
        is_taken = answer.body["pdus"].get(event.event_id) == {}
        assert is_taken == (len(body) < MAX_EVENT_BYTES)
        if is_taken:
            room.add(event)
    assert await state_of(alice, room, "m.room.topic") == {"topic": "b" * 64_000}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the client's, of the size
@pytest.mark.invariant("SEC-SIZE-1")
async def test_sec_size_1_a_request_that_is_too_large_is_refused_before_it_is_read(
    here: RunningServer, peer: Peer
) -> None:
    answer = await send_raw(here, peer, {"pdus": [], "padding": "p" * MAX_TRANSACTION_BYTES})
    assert (answer.status, answer.body["errcode"]) == (413, "M_TOO_LARGE")


@pytest.mark.invariant("SEC-SIZE-1")
async def test_sec_size_1_a_depth_is_believed_by_nobody(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    """The greatest depth that an event may have leaves room for those after it, and the order as it is."""
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea = user_of(peer, "tea")
    deep = room.event(tea, "m.room.message", text("deep"), depth=2**53 - 1)
    await send(here, peer, [deep])
    await until_said(alice, room, "deep")
    said = await alice.say(room.room_id, "after it")
    shallow = room.event(tea, "m.room.message", text("shallow"), prev=[deep], depth=0)
    await send(here, peer, [shallow])
    await until_said(alice, room, "deep", "after it", "shallow")
    async with asyncio.timeout(20):
        while not any(pdu.event_id == said for pdu in room.sent_to(peer)):
            await asyncio.sleep(0.02)
    assert room.events[EventId(said)].depth == 2**53 - 1
