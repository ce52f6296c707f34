"""Events that lack something wait as long as it may be had, and nobody makes those of others wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

import pytest

from homeserver.errors import Unavailable
from homeserver.protocol.events import Pdu
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import incoming_events
from homeserver.services.event_intake import Blocked, EventIntake
from homeserver.services.incoming_events import GIVE_UP_S, MAX_GAPS_OF_SERVER, MAX_LATER
from storage.room_heads import RoomRef
from tests.clients import Client
from tests.federation.homeservers import ask
from tests.federation.joined_rooms import is_shown, join_by, joined
from tests.federation.peers import Answer, Asked, Peer, error_answer
from tests.federation.played_rooms import PlayedRoom, send, user_of
from tests.federation.room_answers import ENDPOINTS, answer_to_join
from tests.federation.test_contention import silent, text, with_gap
from tests.federation.waiting import given_up, until, until_said
from tests.servers import RunningServer


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_events, "PAUSE_S", 0.05)
    monkeypatch.setattr(incoming_events, "MAX_PAUSE_S", 0.2)
    monkeypatch.setattr(incoming_events, "OTHERS_PATIENCE_S", 0.1)


def junk(room: PlayedRoom, sender: str, count: int) -> list[Pdu]:
    """Events that name parents which do not exist."""
    made_up = ["$" + "x" * 39 + f"{number:03}A" for number in range(count)]
    return [room.event(sender, "m.room.message", text("junk"), prev=[one], apart=True) for one in made_up]


def denying(peer: Peer) -> JsonObject:
    """A server ACL that lets all take part but one."""
    return {"allow": ["*"], "deny": [peer.name.rsplit(":", 1)[0]], "allow_ip_literals": True}


async def is_heard(server: RunningServer, peer: Peer) -> None:
    """A server that failed asks for something: so it is there."""
    await ask(server, peer, "/_matrix/federation/v1/query/profile?user_id=nobody")


def ask_silently(room: PlayedRoom, silence: Any, *peers: Peer) -> None:
    """Let only some of the peers be silent about what is missing."""
    room.answers["get_missing_events"] = lambda asked: silence(asked) if asked.peer in peers else None


@pytest.mark.invariant("PROM-FED")
async def test_prom_fed_events_wait_for_a_server_that_cannot_answer_just_now(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea = user_of(peer, "tea")
    room.event(tea, "m.room.message", text("missed"))
    behind = [room.event(tea, "m.room.message", text(f"behind {number}")) for number in range(3)]
    room.fail("get_missing_events", 503)
    assert (await send(here, peer, behind)).body == {"pdus": {pdu.event_id: {} for pdu in behind}}
    await until(lambda: asked_once(room))
    assert not await given_up(here, room)

    room.answers.clear()
    await is_heard(here, peer)
    await until_said(alice, room, "missed", *(f"behind {number}" for number in range(3)))
    assert await given_up(here, room)


async def asked_once(room: PlayedRoom) -> bool:
    return bool(room.requests("get_missing_events"))


@pytest.mark.invariant("PROM-FED")
async def test_prom_fed_what_nobody_gives_is_left_out_in_the_end(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_events, "GIVE_UP_S", 0.2)
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    room.fail("get_missing_events", 503)
    behind = with_gap(room, "behind a gap")
    await send(here, peer, [behind, *junk(room, user_of(peer, "tea"), 2 * MAX_LATER)])
    await until(lambda: given_up(here, room))
    assert not await is_shown(alice, room, behind)


@pytest.mark.invariant("PROM-FED")
async def test_prom_fed_what_comes_late_waits_as_long_as_what_came_early(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = PlayedRoom.new([peer, notary])
    await joined(alice, room)
    room.answers["get_missing_events"] = lambda asked: unable(asked) if asked.peer is notary else None
    await send(here, peer, junk(room, user_of(peer, "tea"), 1))
    await until(lambda: asked_once(room))
    room.fail("get_missing_events", 503)
    now = incoming_events._now
    monkeypatch.setattr(incoming_events, "_now", lambda: now() + GIVE_UP_S)
    late = with_gap(room, "late")
    asked = len(room.requests("get_missing_events"))
    await send(here, peer, [late])
    await until(lambda: asked_more_than(room, asked))
    room.answers.clear()
    await is_heard(here, peer)
    await until_said(alice, room, "kept back", "late")


@pytest.mark.invariant("PROM-FED")
async def test_prom_fed_many_gaps_that_have_to_wait_keep_no_other_from_its_turn(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer, notary])
    await joined(alice, room)
    room.answers["get_missing_events"] = lambda asked: unable(asked) if asked.peer is notary else None
    await send(here, peer, [*junk(room, user_of(peer, "tea"), MAX_LATER), with_gap(room, "well")])
    await until_said(alice, room, "kept back", "well")


@pytest.mark.invariant("PROM-FED")
async def test_prom_fed_what_was_fetched_for_an_event_in_vain_serves_others(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea, forks = user_of(peer, "tea"), room.heads
    given, withheld = (
        room.event(tea, "m.room.message", text(body), prev=forks) for body in ("given", "withheld")
    )
    room.withhold(withheld)
    events = [
        room.event(tea, "m.room.message", text("lost"), prev=[given, withheld]),
        room.event(tea, "m.room.message", text("had"), prev=[given]),
    ]
    await send(here, peer, events)
    await until_said(alice, room, "given", "had")
    await until(lambda: given_up(here, room))
    assert not await is_shown(alice, room, events[0])


@pytest.mark.invariant("SEC-FED-3")
async def test_sec_fed_3_what_the_acl_forbids_one_server_another_may_have_sent(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer, notary])
    await joined(alice, room)
    tea, fork = user_of(peer, "tea"), room.heads
    behind = with_gap(room, "behind a gap")
    room.fail("get_missing_events", 503)
    for one in (notary, peer):
        await send(here, one, [behind])
    acl = denying(notary)
    await send(here, peer, [room.event(tea, "m.room.server_acl", acl, "", prev=fork, apart=True)])
    await until(lambda: waits_only_of(here, room, peer))
    room.answers.clear()
    await is_heard(here, peer)
    await until_said(alice, room, "kept back", "behind a gap")


def unable(_: Asked) -> Answer:
    return error_answer(503, "M_UNKNOWN")


async def asked_more_than(room: PlayedRoom, count: int) -> bool:
    return len(room.requests("get_missing_events")) > count


async def waits_only_of(server: RunningServer, room: PlayedRoom, peer: Peer) -> bool:
    async with server.services.room_history.database.connection() as tx:
        query = "SELECT origin FROM waiting_pdus JOIN rooms ON nid = room_nid WHERE room_id = $1"
        return [row["origin"] for row in await tx.fetch(query, room.room_id)] == [peer.name]


@pytest.mark.invariant("SEC-FED-2")
async def test_sec_fed_2_who_is_not_in_a_room_does_not_fill_what_waits_there(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_events, "MAX_WAITING_IN_ROOM", 5)
    monkeypatch.setattr(incoming_events, "MAX_WAITING_OF_STRANGERS", 5)
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    async with silent(room, "get_missing_events") as silence:
        method, path, _ = ENDPOINTS["get_missing_events"]
        notary.route(method, path, silence)
        room.peers = [peer, notary]
        events = junk(room, user_of(notary, "evil"), 20)
        room.peers = [peer]
        taken = [(await send(here, notary, [pdu])).body["pdus"][pdu.event_id] for pdu in events]
        assert sum("error" not in one for one in taken) <= 6
        del room.answers["get_missing_events"]
        behind = with_gap(room, "behind a gap")
        assert (await send(here, peer, [behind])).body == {"pdus": {behind.event_id: {}}}
        await until_said(alice, room, "kept back", "behind a gap")
        assert not silence.over.is_set()


@pytest.mark.invariant("SEC-FED-2")
async def test_sec_fed_2_a_silent_server_takes_so_many_turns_and_no_more(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    rooms = [
        PlayedRoom.new([peer, notary], members=[user_of(peer, "tea"), user_of(notary, "coffee")])
        for _ in range(MAX_GAPS_OF_SERVER + 1)
    ]
    for room in rooms:
        await joined(alice, room)
    async with silent(rooms[0], "get_missing_events") as silence:
        for room in rooms:
            ask_silently(room, silence, peer)
            await send(here, peer, [with_gap(room, "behind silence")])
        coffee, last = user_of(notary, "coffee"), rooms[-1]
        missed = last.event(coffee, "m.room.message", text("missed"), prev=last.heads)
        await send(here, notary, [last.event(coffee, "m.room.message", text("well"), prev=[missed])])
        await until_said(alice, last, "missed", "well")
        assert silence.requests == MAX_GAPS_OF_SERVER


@pytest.mark.invariant("SEC-FED-2")
async def test_sec_fed_2_who_relays_an_event_first_does_not_keep_it_from_others(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    tea, evil = user_of(peer, "tea"), user_of(notary, "evil")
    room = PlayedRoom.new([peer, notary], members=[tea, evil])
    await joined(alice, room)
    async with silent(room, "get_missing_events") as silence:
        ask_silently(room, silence, notary)
        await send(here, notary, junk(room, evil, 3))
        await silence.asked.wait()
        behind = with_gap(room, "behind a gap")
        await send(here, notary, [behind])
        await send(here, peer, [behind])
        await until_said(alice, room, "kept back", "behind a gap")
        assert not silence.over.is_set()


@pytest.mark.invariant("SEC-FED-4")
async def test_sec_fed_4_what_events_of_two_servers_lack_is_asked_for_once(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_events, "OTHERS_PATIENCE_S", 60)
    tea, coffee = user_of(peer, "tea"), user_of(notary, "coffee")
    room = PlayedRoom.new([peer, notary], members=[tea, coffee])
    await joined(alice, room)
    missed = room.event(tea, "m.room.message", text("missed"))
    behind = [room.event(one, "m.room.message", text("behind"), prev=[missed]) for one in (tea, coffee)]
    both_wait = asyncio.Event()

    async def slow(asked: Asked) -> Answer:
        await both_wait.wait()
        given = ENDPOINTS["get_missing_events"][2](room, asked)
        answer = await given if isinstance(given, Awaitable) else given
        assert answer is not None
        return answer

    room.answers["get_missing_events"] = slow
    await send(here, peer, behind[:1])
    await until(lambda: asked_once(room))
    await send(here, notary, behind[1:])
    both_wait.set()
    await until_said(alice, room, "missed", "behind", "behind")
    await until(lambda: given_up(here, room))
    assert len(room.requests("get_missing_events")) == 1
    assert await is_shown(alice, room, behind[1])


@pytest.mark.invariant("SEC-FED-3")
async def test_sec_fed_3_the_acl_holds_for_what_came_during_the_join(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    tea, evil = user_of(peer, "tea"), user_of(notary, "evil")
    room = PlayedRoom.new([peer, notary], members=[tea, evil])
    acl = denying(notary)
    room.event(tea, "m.room.server_acl", acl, "")
    pushed: list[Pdu] = []

    async def early(asked: Asked) -> Answer:
        join = room.add(room.parsed(asked.content))
        pushed.append(room.event(evil, "m.room.message", text("denied"), prev=[join], apart=True))
        pushed.append(room.event(tea, "m.room.message", text("allowed"), prev=[join]))
        await send(here, notary, pushed[:1])
        await send(here, peer, pushed[1:])
        return answer_to_join(room, join)

    room.answers["send_join"] = early
    assert (await join_by(alice, room.room_id, peer.name)).status == 200
    await until_said(alice, room, "allowed")
    await until(lambda: given_up(here, room))
    assert not await is_shown(alice, room, pushed[0])


@pytest.mark.invariant("SEC-FED-2")
async def test_sec_fed_2_a_room_that_is_too_busy_fails_no_transaction(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, other = PlayedRoom.new([peer]), PlayedRoom.new([peer])
    await joined(alice, busy)
    await joined(alice, other)
    place = EventIntake.place
    refusals = 3

    async def overtaken(intake: EventIntake, ref: RoomRef, pdus: Iterable[Pdu]) -> Sequence[Blocked]:
        nonlocal refusals
        if ref.room_id == busy.room_id and refusals:
            refusals -= 1
            raise Unavailable("the room is too busy; try again")
        return await place(intake, ref, pdus)

    monkeypatch.setattr(EventIntake, "place", overtaken)
    tea = user_of(peer, "tea")
    events = [room.event(tea, "m.room.message", text("here")) for room in (busy, other)]
    answer = await send(here, peer, events)
    assert (answer.status, answer.body) == (200, {"pdus": {pdu.event_id: {} for pdu in events}})
    for room in (other, busy):
        await until_said(alice, room, "here")
    assert not refusals


async def test_where_too_many_wait_only_those_that_were_not_placed_are_refused(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_events, "MAX_WAITING_OF_SERVER", 0)
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    placed = room.event(user_of(peer, "tea"), "m.room.message", text("placed"))
    behind = with_gap(room, "behind a gap")
    answers = (await send(here, peer, [placed, behind])).body["pdus"]
    assert answers[placed.event_id] == {}
    assert set(answers[behind.event_id]) == {"error"}
    assert await is_shown(alice, room, placed)
