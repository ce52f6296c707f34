"""Events that lack something: what is missing is fetched, within bounds, and a gap that stays is bridged."""

from __future__ import annotations

import pytest

from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId
from homeserver.services.missing_events import EVENTS_AT_ONCE, MAX_ROUNDS
from tests.clients import Client
from tests.federation.joined_rooms import bodies, is_shown, joined, state_of
from tests.federation.peers import Peer
from tests.federation.played_rooms import PlayedRoom, send, user_of
from tests.federation.waiting import given_up, until, until_said
from tests.room_versions import versions_of_each_form
from tests.servers import RunningServer


async def has_got(peer: Peer, room: PlayedRoom, event_id: str) -> bool:
    return any(pdu.event_id == event_id for pdu in room.sent_to(peer))


@versions_of_each_form
async def test_a_short_gap_is_closed_without_asking_for_state(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    await joined(alice, room)
    tea = user_of(peer, "tea")
    for number in range(5):
        room.event(tea, "m.room.message", {"body": f"missed {number}"})
    room.event(tea, "m.room.topic", {"topic": "missed too"}, "")
    last = room.event(tea, "m.room.message", {"body": "last"})

    await send(here, peer, [last])

    await until_said(alice, room, "last", *(f"missed {number}" for number in range(5)))
    assert (await state_of(alice, room, "m.room.topic")) == {"topic": "missed too"}
    assert not room.requests("state_ids") and not room.requests("state")
    assert (await bodies(alice, room))[-6:] == [*(f"missed {number}" for number in range(5)), "last"]


@versions_of_each_form
async def test_what_was_said_while_our_user_joined_is_heard(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    """Its parent is history that is not known here: the parent of our join too."""
    room = PlayedRoom.new([peer], version=version)
    before = room.heads
    await joined(alice, room)
    tea = user_of(peer, "tea")
    meanwhile = room.event(tea, "m.room.message", {"body": "meanwhile"}, prev=before)
    topic = room.event(tea, "m.room.topic", {"topic": "meanwhile"}, "", prev=[meanwhile])

    await send(here, peer, [meanwhile, topic])

    await until_said(alice, room, "meanwhile")
    await until(lambda: state_of(alice, room, "m.room.topic"))
    await send(here, peer, [room.event(tea, "m.room.message", {"body": "merged"})])
    await until_said(alice, room, "merged")


async def test_an_event_whose_parents_are_kept_back_is_not_taken_until_they_are_there(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea = user_of(peer, "tea")
    kept_back = room.event(tea, "m.room.message", {"body": "kept back"})
    room.withhold(kept_back)
    event = room.event(tea, "m.room.message", {"body": "without parents"})
    await send(here, peer, [event])
    await until(lambda: given_up(here, room))
    assert not await is_shown(alice, room, event)
    said = await alice.say(room.room_id, "as if nothing had been")
    await until(lambda: has_got(peer, room, said))
    assert event.event_id not in room.events[EventId(said)].prev_events

    del room.handed_out[kept_back.event_id]
    await send(here, peer, [event])
    await until_said(alice, room, "kept back", "without parents")


async def test_missing_auth_events_are_fetched_and_one_that_nobody_gives_spoils_one_event(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer], version="11")
    await joined(alice, room)
    tea = user_of(peer, "tea")
    levels = room.state["m.room.power_levels", ""]
    create = room.state["m.room.create", ""]
    names = [
        room.event(tea, "m.room.member", {"membership": "join", "displayname": name}, tea, apart=True)
        for name in ("to be had", "kept back")
    ]
    for name in names:
        room.events[name.event_id] = name
    room.withhold(names[1])
    said = [
        room.event(tea, "m.room.message", {"body": name.content["displayname"]}, auth=[create, levels, name])
        for name in names
    ]
    others = room.event(tea, "m.room.message", {"body": "another"}, prev=[said[0]])

    await send(here, peer, [said[0], said[1], others])

    await until_said(alice, room, "to be had", "another")
    await until(lambda: given_up(here, room))
    assert not await is_shown(alice, room, said[1])


async def test_an_event_sent_before_a_ban_that_comes_after_it_is_shown_to_nobody(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    bad = user_of(peer, "bad")
    room = PlayedRoom.new([peer], members=[user_of(peer, "tea"), bad])
    await joined(alice, room)
    before = room.heads
    ban = room.event(user_of(peer, "tea"), "m.room.member", {"membership": "ban"}, bad)
    late = room.event(bad, "m.room.message", {"body": "too late"}, prev=before)
    await send(here, peer, [ban])
    await send(here, peer, [late])
    merged = room.event(user_of(peer, "tea"), "m.room.message", {"body": "merged"}, prev=[ban])
    await send(here, peer, [merged])

    await until_said(alice, room, "merged")
    assert not await is_shown(alice, room, late)
    said = await alice.say(room.room_id, "quiet again")
    await until(lambda: has_got(peer, room, said))
    assert room.events[EventId(said)].prev_events == (merged.event_id,)


@versions_of_each_form
async def test_a_long_gap_that_cannot_be_closed_is_bridged(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    await joined(alice, room)
    tea = user_of(peer, "tea")
    for number in range(300):
        room.event(tea, "m.room.message", {"body": f"lost {number}"})
    room.event(tea, "m.room.topic", {"topic": "in the gap"}, "")
    last = room.event(tea, "m.room.message", {"body": "last"})
    assert (await send(here, peer, [last])).body == {"pdus": {last.event_id: {}}}

    async def has_come() -> bool:
        return "last" in await bodies(alice, room)

    await until(has_come)
    assert (await state_of(alice, room, "m.room.topic"))["topic"] == "in the gap"
    assert room.requests("state_ids") or room.requests("state")


def unverifiable(room: PlayedRoom, event: Pdu, peer: Peer) -> None:
    """Let the peers give an event with a signature that nobody can check."""
    room.garble(event, signatures={peer.name: {"ed25519:gone": "A" * 86}})


async def test_an_event_that_nobody_can_verify_spoils_nothing_that_builds_on_it(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea, forks = user_of(peer, "tea"), room.heads
    good, bad = (room.event(tea, "m.room.message", {"body": body}, prev=forks) for body in ("good", "bad"))
    unverifiable(room, bad, peer)
    for body in ("first", "second"):
        await send(here, peer, [room.event(tea, "m.room.message", {"body": body}, prev=[good, bad])])
        await until(lambda: given_up(here, room))
    last = room.event(tea, "m.room.message", {"body": "last"})
    await send(here, peer, [last])
    await until_said(alice, room, "good", "last")
    assert not await is_shown(alice, room, bad)


@pytest.mark.parametrize("speaks", [False, True])
async def test_a_member_whom_nobody_can_verify_does_not_end_the_room(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, speaks: bool
) -> None:
    """After a gap that cannot be closed, or after what that member says."""
    tea, coffee = user_of(peer, "tea"), user_of(notary, "coffee")
    room = PlayedRoom.new([peer, notary], members=[tea, coffee])
    unverifiable(room, room.events[room.state["m.room.member", coffee]], notary)
    await joined(alice, room)
    if speaks:
        await send(here, notary, [room.event(coffee, "m.room.message", {"body": "coffee"})])
    else:
        for number in range(2 * MAX_ROUNDS * EVENTS_AT_ONCE):
            room.event(tea, "m.room.message", {"body": f"missed {number}"})
    for body in ("later", "last"):
        event = room.event(tea, "m.room.message", {"body": body})
        await send(here, peer, [event])
        await until(lambda: given_up(here, room))
    await until_said(alice, room, "last")
