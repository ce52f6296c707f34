"""Asking other servers, who may be silent or too talkative: nobody else waits, and all has an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from federation.outbound import room_requests
from homeserver.protocol.events import Pdu
from homeserver.services import incoming_events, missing_events
from homeserver.services.gap_filling import SERVERS_TO_ASK
from homeserver.services.missing_events import EVENTS_AT_ONCE, MAX_ROUNDS, MAX_SERVERS
from tests.clients import Client
from tests.federation.joined_rooms import is_shown, join_by, joined
from tests.federation.peers import Answer, Asked, Authority, Peer, error_answer, json_answer, running_peer
from tests.federation.played_rooms import PlayedRoom, send, user_of
from tests.federation.waiting import given_up, until, until_said
from tests.servers import MovableClock, RunningServer

STREAM_LOCK: Final = 7810776
SAID: Final = 50
LIMIT_S: Final = 1.0
"""Of a hundred requests no more than one may take longer."""


def text(body: str) -> dict[str, Any]:
    return {"msgtype": "m.text", "body": body}


@dataclass
class Silence:
    """Answers of a room that do not come before the end of the test."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    requests: int = 0

    def __call__(self, _: Asked) -> Awaitable[Answer]:
        self.requests += 1
        self.asked.set()
        return self._wait()

    async def _wait(self) -> Answer:
        await self.over.wait()
        return error_answer(404, "M_NOT_FOUND")


@asynccontextmanager
async def silent(room: PlayedRoom, *endpoints: str) -> AsyncIterator[Silence]:
    """Let the peers of a room be silent when they are asked some things."""
    silence = Silence()
    room.answers |= dict.fromkeys(endpoints, silence)
    try:
        yield silence
    finally:
        silence.over.set()


async def times_of(act: Callable[[int], Awaitable[object]]) -> list[float]:
    """How long each of some requests takes, one after another; sorted."""
    times = []
    for number in range(SAID):
        started = time.perf_counter()
        await act(number)
        times.append(time.perf_counter() - started)
    return sorted(times)


async def holds_stream_lock(server: RunningServer) -> bool:
    async with server.services.room_history.database.connection() as tx:
        query = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = $1)"
        return bool(await tx.fetchval(query, STREAM_LOCK))


def with_gap(room: PlayedRoom, body: str) -> Pdu:
    """An event after one that our server does not get."""
    tea = user_of(room.peers[0], "tea")
    room.event(tea, "m.room.message", text("kept back"))
    return room.event(tea, "m.room.message", text(body))


@pytest.mark.invariant("SEC-LOCK-1")
async def test_sec_lock_1_a_room_that_lacks_events_of_a_silent_peer_goes_on(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    fork, tea = room.heads, user_of(peer, "tea")
    blocked = with_gap(room, "blocked")
    async with silent(room, "get_missing_events") as silence:
        started = time.perf_counter()
        assert (await send(here, peer, [blocked])).status == 200
        assert time.perf_counter() - started < LIMIT_S
        await silence.asked.wait()
        assert not await holds_stream_lock(here)

        times = await times_of(lambda number: alice.say(room.room_id, f"said {number}"))
        assert times[-2] < LIMIT_S

        async def receive(number: int) -> None:
            event = room.event(tea, "m.room.message", text(f"heard {number}"), prev=fork, apart=True)
            await send(here, peer, [event])
            assert await is_shown(alice, room, event)

        times = await times_of(receive)
        assert times[-2] < LIMIT_S
        assert not silence.over.is_set() and silence.requests == 1
        assert not await is_shown(alice, room, blocked)
    await until(lambda: given_up(here, room))


@pytest.mark.invariant("SEC-LOCK-1")
async def test_sec_lock_1_who_joins_through_a_silent_server_stops_nobody(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room, other = PlayedRoom.new([peer]), PlayedRoom.new([peer])
    await joined(alice, other)
    own = await alice.create_room()
    async with silent(room, "send_join") as silence, asyncio.TaskGroup() as tasks:
        joining = tasks.create_task(join_by(alice, room.room_id, peer.name))
        await silence.asked.wait()
        assert not await holds_stream_lock(here)
        for room_id in (own, other.room_id):
            times = await times_of(lambda number, to=room_id: alice.say(to, f"said {number}"))  # type: ignore[misc]
            assert times[-2] < LIMIT_S

        async def receive(number: int) -> None:
            event = other.event(user_of(peer, "tea"), "m.room.message", text(f"heard {number}"))
            await send(here, peer, [event])
            assert await is_shown(alice, other, event)

        times = await times_of(receive)
        assert times[-2] < LIMIT_S
        # Events of the room itself wait for the join, and their sender does not.
        early = room.event(user_of(peer, "tea"), "m.room.message", text("early"))
        started = time.perf_counter()
        assert (await send(here, peer, [early])).status == 200
        assert time.perf_counter() - started < LIMIT_S
        assert not joining.done()
        silence.over.set()
        assert (await joining).status >= 400


@pytest.mark.invariant("SEC-FED-4")
async def test_sec_fed_4_a_room_asks_for_what_it_lacks_once_however_often_it_is_named(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    blocked = with_gap(room, "blocked")
    async with silent(room, "get_missing_events") as silence:
        await send(here, peer, [blocked])
        await silence.asked.wait()
        for number in range(5):
            later = room.event(user_of(peer, "tea"), "m.room.message", text(f"later {number}"))
            assert (await send(here, peer, [blocked, later])).status == 200
        assert silence.requests == 1
        assert len(room.requests("get_missing_events")) == 1
    del room.answers["get_missing_events"]
    await until(lambda: given_up(here, room))


@pytest.mark.invariant("SEC-FED-4")
async def test_sec_fed_4_many_events_behind_one_gap_ask_for_it_once(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    """Nobody gives what they lack, and they come in any order."""
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea = user_of(peer, "tea")
    room.withhold(room.event(tea, "m.room.message", text("kept back")))
    behind = [room.event(tea, "m.room.message", text(f"behind {number}")) for number in range(50)]
    room.answers["get_missing_events"] = lambda _: json_answer({"events": []})
    await send(here, peer, behind[::-1])
    await until(lambda: given_up(here, room))
    assert len(room.requests("get_missing_events")) == 1

    room.handed_out.clear()
    del room.answers["get_missing_events"]
    await send(here, peer, behind)
    await until_said(alice, room, "behind 0", "behind 49")
    assert len(room.requests("get_missing_events")) == 2


@pytest.mark.invariant("SEC-FED-2")
async def test_sec_fed_2_a_gap_of_a_silent_server_holds_back_no_other_server_of_the_room(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_events, "OTHERS_PATIENCE_S", 0.1)
    tea, coffee = user_of(peer, "tea"), user_of(notary, "coffee")
    room = PlayedRoom.new([peer, notary], members=[tea, coffee])
    await joined(alice, room)
    forks = room.heads
    behind_silence = with_gap(room, "behind silence")
    lost = room.event(coffee, "m.room.message", text("lost"), prev=forks)
    behind_gap = room.event(coffee, "m.room.message", text("behind a gap"), prev=[lost])
    async with silent(room, "get_missing_events") as silence:
        answer = room.answers["get_missing_events"]
        room.answers["get_missing_events"] = lambda asked: answer(asked) if asked.peer is peer else None
        await send(here, peer, [behind_silence])
        await silence.asked.wait()
        await send(here, notary, [behind_gap])
        await until_said(alice, room, "lost", "behind a gap")
        assert not silence.over.is_set() and silence.requests == 1
    await until(lambda: given_up(here, room))


@pytest.mark.invariant("SEC-FED-4")
async def test_sec_fed_4_the_way_back_has_so_many_steps_and_each_so_many_events(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea = user_of(peer, "tea")
    for number in range(2 * MAX_ROUNDS * EVENTS_AT_ONCE):
        room.event(tea, "m.room.message", text(f"lost {number}"))
    last = room.event(tea, "m.room.message", text("last"))

    def talkative(asked: Asked) -> Answer:
        """Gives ten times what it is asked for."""
        wanted = asked.content["latest_events"][0]
        events = list(room.events)
        upto = events.index(wanted)
        given = events[max(0, upto - 10 * EVENTS_AT_ONCE) : upto]
        return json_answer({"events": [room.events[event_id].json for event_id in given]})

    room.answers["get_missing_events"] = talkative
    await send(here, peer, [last])
    await until(lambda: given_up(here, room))
    requests = room.requests("get_missing_events")
    assert len(requests) <= MAX_ROUNDS
    assert {asked.content["limit"] for asked in requests} == {EVENTS_AT_ONCE}
    async with here.services.room_history.database.connection() as tx:
        query = "SELECT count(*) FROM events JOIN rooms ON rooms.nid = room_nid WHERE room_id = $1"
        assert await tx.fetchval(query, room.room_id) <= MAX_ROUNDS * EVENTS_AT_ONCE + 20


@pytest.mark.invariant("SEC-FED-4")
async def test_sec_fed_4_few_servers_are_asked_and_one_that_fails_is_left_for_the_next(
    here: RunningServer, authority: Authority, alice: Client, clock: MovableClock
) -> None:
    async with (
        running_peer(authority, clock) as first,
        running_peer(authority, clock) as second,
        running_peer(authority, clock) as third,
        running_peer(authority, clock) as fourth,
        running_peer(authority, clock) as fifth,
    ):
        peers = [first, second, third, fourth, fifth]
        room = PlayedRoom.new(peers)
        await joined(alice, room)
        blocked = with_gap(room, "blocked")
        room.fail("get_missing_events", 404, "M_NOT_FOUND")
        await send(here, first, [blocked])
        await until(lambda: given_up(here, room))
        asked = [request.peer for request in room.requests("get_missing_events")]
        assert asked[0] is first
        assert len(asked) == len({peer.name for peer in asked}) == min(MAX_SERVERS, SERVERS_TO_ASK)
        assert not await is_shown(alice, room, blocked)

        def one_knows(asked: Asked) -> Answer | None:
            return error_answer(404, "M_NOT_FOUND") if asked.peer is first else None

        room.answers["get_missing_events"] = one_knows
        await send(here, first, [blocked])
        await until_said(alice, room, "kept back", "blocked")


@pytest.mark.invariant("SEC-FED-4")
@pytest.mark.parametrize("endpoint", ["get_missing_events", "state_ids", "event"])
async def test_sec_fed_4_answers_have_an_end_in_bytes_and_in_time(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """A peer that gives too much, and one that gives nothing at all, leave the room as it was."""
    for name in ("MAX_HISTORY_BYTES", "MAX_STATE_IDS_BYTES", "MAX_EVENT_BYTES"):
        monkeypatch.setattr(room_requests, name, 200_000)
    for name in ("HISTORY_TIMEOUT_S", "STATE_IDS_TIMEOUT_S", "EVENT_TIMEOUT_S"):
        monkeypatch.setattr(room_requests, name, 0.5)
    monkeypatch.setattr(incoming_events, "GIVE_UP_S", -1)
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea = user_of(peer, "tea")
    for number in range(2 * MAX_ROUNDS * EVENTS_AT_ONCE):
        room.event(tea, "m.room.message", text(f"lost {number}"))
    last = room.event(tea, "m.room.message", text("last"))

    room.answers[endpoint] = lambda _: json_answer({"padding": "p" * 1_000_000})
    await send(here, peer, [last])
    await until(lambda: given_up(here, room))
    assert room.requests(endpoint)
    assert not await is_shown(alice, room, last)
    async with silent(room, endpoint):
        await send(here, peer, [last])
        await until(lambda: given_up(here, room))
        assert not await is_shown(alice, room, last)
    await alice.say(room.room_id, "as if nothing had been")


@pytest.mark.invariant("SEC-FED-4")
async def test_sec_fed_4_of_a_state_so_many_events_are_fetched_and_no_more(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing_events, "MAX_FETCHED_EVENTS", 5)
    monkeypatch.setattr(missing_events, "ONE_BY_ONE_UP_TO", 0)
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    tea = user_of(peer, "tea")
    for number in range(MAX_ROUNDS * EVENTS_AT_ONCE + 30):
        room.event(tea, "org.example.state", {"number": number}, f"{number}")
    last = room.event(tea, "m.room.message", text("last"))
    await send(here, peer, [last])
    await until(lambda: given_up(here, room))
    assert room.requests("state_ids")
    per_try = 5 + 1 + 5 * MAX_ROUNDS
    assert len(room.requests("event")) <= per_try * MAX_SERVERS
