"""Rooms of servers that mean harm: others are not held up, and a room stays the one that it is."""

from __future__ import annotations

import asyncio

import pytest

from homeserver.protocol.room_versions import room_version
from homeserver.services import incoming_events
from tests.clients import Client
from tests.federation.joined_rooms import is_shown, joined, state_of
from tests.federation.peers import Answer, Asked, Peer, json_answer
from tests.federation.played_rooms import PlayedRoom, send, user_of
from tests.federation.waiting import given_up, until, until_said
from tests.servers import RunningServer


async def test_sec_fed_2_a_room_in_which_too_many_events_wait_holds_back_no_other(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_events, "MAX_WAITING_OF_SERVER", 100)
    evil, tea = user_of(notary, "evil"), user_of(peer, "tea")
    room = PlayedRoom.new([peer, notary], members=[tea, evil])
    other = PlayedRoom.new([peer])
    await joined(alice, room)
    await joined(alice, other)
    let_go = asyncio.Event()

    async def slow() -> Answer:
        await let_go.wait()
        return json_answer({"events": []})

    room.answers["get_missing_events"] = lambda asked: slow() if asked.peer is notary else None
    answers = []
    for part in range(3):
        events = [
            room.event(
                evil, "m.room.message", {"body": f"{part} {number}"}, prev=["$" + "x" * 42 + "A"], apart=True
            )
            for number in range(50)
        ]
        answers.append((await send(here, notary, events)).body["pdus"])
    room.event(tea, "m.room.message", {"body": "missed"})
    behind_gap = room.event(tea, "m.room.message", {"body": "behind an honest gap"})
    elsewhere = other.event(tea, "m.room.message", {"body": "elsewhere"})
    answer = await send(here, peer, [behind_gap, elsewhere])
    let_go.set()

    assert [sum("error" in one for one in part.values()) for part in answers] == [0, 0, 50]
    assert (answer.status, answer.body) == (200, {"pdus": {behind_gap.event_id: {}, elsewhere.event_id: {}}})
    await until_said(alice, other, "elsewhere")
    await until_said(alice, room, "missed", "behind an honest gap")


async def test_sec_auth_3_a_room_has_one_beginning(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    """The server that the room is named after makes it anew, and tells what state that led to."""
    owner, evil = user_of(notary, "owner"), user_of(peer, "evil")
    first = user_of(peer, "first")
    room = PlayedRoom.new(
        [peer, notary], version="11", members=[first, owner], power_levels={"users": {owner: 100, first: 100}}
    )
    await joined(alice, room)
    later = peer.clock() + 600_000
    fake = PlayedRoom(room_version("11"), [peer, notary], room.room_id)
    fake.event(evil, "m.room.create", {"room_version": "11"}, "", origin_server_ts=later)
    fake.event(evil, "m.room.member", {"membership": "join"}, evil, origin_server_ts=later)
    fake.event(evil, "m.room.power_levels", {"users": {evil: 100}}, "", origin_server_ts=later)
    fake.event(evil, "m.room.join_rules", {"join_rule": "public"}, "", origin_server_ts=later)
    fake.event(evil, "m.room.message", {"body": "kept back"}, depth=99, origin_server_ts=later)
    one = fake.event(evil, "m.room.message", {"body": "one"}, depth=100, origin_server_ts=later)
    two = fake.event(evil, "m.room.message", {"body": "two"}, depth=101, origin_server_ts=later)
    fake.serve()

    def all_but_the_first(asked: Asked) -> Answer:
        return json_answer({"events": [one.json] if two.event_id in asked.content["latest_events"] else []})

    fake.answers["get_missing_events"] = all_but_the_first
    await send(here, peer, [two])
    await until(lambda: given_up(here, room))

    assert fake.requests("state_ids"), "the state before the event that was kept back is asked for"
    assert not await is_shown(alice, room, one)
    assert not await is_shown(alice, room, two)
    assert (
        await state_of(alice, room, "m.room.create") == room.events[room.state["m.room.create", ""]].content
    )
    assert evil not in (await state_of(alice, room, "m.room.power_levels"))["users"]
