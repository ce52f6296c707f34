"""Rooms that this server left and enters again: what it sent before counts, what comes meanwhile waits."""

from __future__ import annotations

import asyncio

import pytest

from tests.client_api.rooms import room_path
from tests.clients import Client
from tests.federation.joined_rooms import comes, join_by, joined, members
from tests.federation.peers import Answer, Asked, Peer, error_answer, json_answer
from tests.federation.played_rooms import PlayedRoom, send, user_of
from tests.federation.room_answers import answer_to_join
from tests.federation.waiting import until
from tests.servers import RunningServer, unique_name

FETCHING = ("get_missing_events", "state_ids", "state", "event", "event_auth")


async def leave(client: Client, room: PlayedRoom) -> None:
    assert (await client.post(room_path(room.room_id, "leave"), {})).status == 200


async def until_known(room: PlayedRoom, client: Client, membership: str) -> None:
    """Wait until the peers know what a user of ours is."""

    async def is_known() -> bool:
        member = room.state.get(("m.room.member", client.user_id))
        return member is not None and room.events[member].membership == membership

    await until(is_known)


@pytest.mark.parametrize("gives_events", [True, False])
async def test_events_that_come_while_a_room_is_joined_again_wait(
    here: RunningServer, peer: Peer, alice: Client, gives_events: bool
) -> None:
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    await leave(alice, room)
    await until_known(room, alice, "leave")
    room.event(user_of(peer, "tea"), "m.room.message", {"body": "while you were away"})
    placed_early = []

    async def early(asked: Asked) -> Answer:
        join = room.add(room.parsed(asked.content))
        message = room.event(user_of(peer, "tea"), "m.room.message", {"body": "welcome back"})
        assert (await send(here, peer, [message])).body == {"pdus": {message.event_id: {}}}
        placed_early.extend(room.requests("get_missing_events"))
        return answer_to_join(room, join)

    room.answers["send_join"] = early
    if not gives_events:
        for name in FETCHING:
            room.answers[name] = lambda _: error_answer(403, "M_FORBIDDEN")
    answer = await join_by(alice, room.room_id, peer.name)

    assert answer.status == 200
    assert placed_early == []
    assert await comes(alice, room, "welcome back")
    assert await members(alice, room) == {alice.user_id, user_of(peer, "tea")}


async def test_prom_conv_what_was_done_before_we_left_is_known_before_we_come_back(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    carol = await here.nobody.register(unique_name("carol"))
    await joined(alice, room)
    assert (await join_by(carol, room.room_id)).status == 200
    await until_known(room, carol, "join")
    room.fail("send")
    await leave(carol, room)
    await leave(alice, room)
    async with asyncio.TaskGroup() as tasks:
        coming_back = tasks.create_task(join_by(alice, room.room_id, peer.name))
        await until(lambda: has_been_asked(room))
        del room.answers["send"]

    assert coming_back.result().status == 200
    assert len(room.requests("make_join")) == 3, "what is proposed before the peer knows all is of no use"
    assert room.events[room.state["m.room.member", carol.user_id]].membership == "leave"
    assert await members(alice, room) == {alice.user_id, user_of(peer, "tea")}
    assert room.room_id not in (await carol.sync())["rooms"].get("join", {})


@pytest.mark.parametrize("way", ["leave", "ban"])
async def test_who_does_not_know_that_one_of_us_has_left_is_passed_over(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, way: str
) -> None:
    room = PlayedRoom.new([peer, notary], power_levels={"users": {alice.user_id: 50}})
    carol = await here.nobody.register(unique_name("carol"))
    await joined(alice, room)
    assert (await join_by(carol, room.room_id)).status == 200
    await until_known(room, carol, "join")
    old = room.state
    if way == "ban":
        answer = await alice.post(room_path(room.room_id, "ban"), {"user_id": carol.user_id})
        assert answer.status == 200
    else:
        await leave(carol, room)
    await leave(alice, room)
    await until_known(room, alice, "leave")

    def send_join(asked: Asked) -> Answer | None:
        if asked.peer is peer:
            return None
        state = [room.events[event_id].json for event_id in old.values()]
        chain = [event.json for event in room.events.values() if event.state_key is not None]
        return json_answer({"state": state, "auth_chain": chain, "members_omitted": False})

    room.answers["send_join"] = send_join
    answer = await join_by(alice, room.room_id, notary.name)
    others = {user_of(peer, "tea"), user_of(notary, "tea")}

    assert answer.status == 200
    assert [asked.peer for asked in room.requests("send_join")[1:]] == [notary, peer]
    assert await members(alice, room) == {alice.user_id, *others}
    assert room.room_id not in (await carol.sync())["rooms"].get("join", {})


@pytest.mark.parametrize("was_there", [False, True])
async def test_who_is_in_the_room_by_a_join_that_is_not_known_here_stays_out_until_joining_again(
    here: RunningServer, peer: Peer, alice: Client, was_there: bool
) -> None:
    room = PlayedRoom.new([peer])
    carol = await here.nobody.register(unique_name("carol"))
    users = [alice, carol] if was_there else [alice]
    for user in users:
        assert (await join_by(user, room.room_id, peer.name)).status == 200
    for user in reversed(users):
        await leave(user, room)
        await until_known(room, user, "leave")

    def lost(asked: Asked) -> Answer:
        room.add(room.parsed(asked.content))
        return error_answer(404, "M_NOT_FOUND")

    room.answers["send_join"] = lost
    assert (await join_by(carol, room.room_id, peer.name)).status == 404
    del room.answers["send_join"]
    await joined(alice, room)
    before = await carol.sync()
    said = await carol.get(room_path(room.room_id, "joined_members"))

    assert room.events[room.state["m.room.member", carol.user_id]].membership == "join"
    assert room.room_id not in before["rooms"].get("join", {})
    assert said.status == 403
    assert (await join_by(carol, room.room_id)).status == 200
    for since in (None, before["next_batch"]):
        shown = (await carol.sync(since))["rooms"]["join"][room.room_id]
        events = [*shown["state"]["events"], *shown["timeline"]["events"]]
        assert {("m.room.create", ""), ("m.room.member", alice.user_id)} <= {
            (event["type"], event.get("state_key")) for event in events
        }
    assert await members(carol, room) == {user_of(peer, "tea"), alice.user_id, carol.user_id}


async def has_been_asked(room: PlayedRoom) -> bool:
    """Whether a second join was asked for."""
    return len(room.requests("make_join")) > 1
