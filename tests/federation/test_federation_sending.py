"""What other servers are owed reaches them: in order, after any failure, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest

from homeserver.errors import Unavailable
from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.event_hashes import encode_event_id, event_id_of
from homeserver.protocol.events import MAX_EVENT_BYTES, Pdu, parse_pdu
from homeserver.protocol.identifiers import UserId
from homeserver.protocol.request_signing import credentials_of, exact_content, signed_request
from homeserver.protocol.room_versions import RoomVersion, room_version
from homeserver.protocol.signing import VerifyKey, verify_event_signatures, verify_signed_json
from homeserver.services import destination_queue, federation_sending, outgoing_transactions
from homeserver.services.outgoing_events import OutgoingEvents
from storage import sent_positions
from tests.federation.homeservers import NOBODY_THERE
from tests.federation.peers import SEND, Asked, Authority, Peer, error_answer, json_answer, running_peer
from tests.federation.sending_sides import LONG_MS, Gate, SendingSide, bodies, sending_side, until
from tests.servers import MovableClock
from tests.storage.stores import SERVER


@pytest.fixture
async def side(postgres_url: str, authority: Authority, clock: MovableClock) -> AsyncIterator[SendingSide]:
    """Our server."""
    async with sending_side(postgres_url, authority, clock) as side:
        yield side


@pytest.fixture
async def other(authority: Authority, clock: MovableClock) -> AsyncIterator[Peer]:
    """One more homeserver."""
    async with running_peer(authority, clock) as other:
        yield other


def said(peer: Peer) -> list[str]:
    """What came to a peer."""
    return bodies(peer.transactions)


def numbers(count: int, first: int = 0) -> list[str]:
    return [str(number) for number in range(first, first + count)]


async def test_an_event_goes_at_once_to_every_server_of_its_room(
    side: SendingSide, peer: Peer, other: Peer
) -> None:
    alice, room_id = await side.room(peer, other)
    _, elsewhere = await side.room(other)
    async with side.sending():
        [first] = await side.say(alice, room_id, "tea")
        await until(lambda: said(peer) == said(other) == ["tea"])
        [second] = await side.say(alice, room_id, "cake")
        await until(lambda: said(peer) == said(other) == ["tea", "cake"])

    transactions = peer.transactions
    [pdu] = transactions[0].content["pdus"]
    version = room_version("12")
    assert elsewhere != room_id
    assert [event_id_of(version, one.content["pdus"][0]) for one in transactions] == [first, second]
    assert transactions[0].content == {
        "origin": SERVER, "origin_server_ts": side.clock(), "pdus": [pdu]
    }  # fmt: skip
    keys = {side.key.key_id: VerifyKey(side.key.public_key, MAX_INTEGER)}
    verify_event_signatures(version, parse_pdu(version, pdu), {SERVER: keys})
    received = peer.server.received[0]
    credentials = credentials_of([received.headers["Authorization"]])
    signed = signed_request(credentials, peer.name, received.method, received.target)
    verify_signed_json({**signed, "content": exact_content(received.body)}, SERVER, keys, valid_at=0)


async def test_events_of_others_are_not_passed_on(side: SendingSide, peer: Peer, other: Peer) -> None:
    alice, room_id = await side.room(peer, other)
    bob = UserId(f"@bob:{peer.name}")
    async with side.sending():
        await side.arrives(room_id, bob, "m.room.message", {"msgtype": "m.text", "body": "hello"})
        await side.say(alice, room_id, "hello yourself")
        await until(lambda: said(peer) == said(other) == ["hello yourself"])


async def test_many_events_go_in_order_and_fifty_at_a_time(side: SendingSide, peer: Peer) -> None:
    alice, room_id = await side.room(peer)
    gate = Gate.of(peer)
    async with side.sending() as sending:
        gate.hangs = True
        await side.say(alice, room_id, *numbers(1))
        await until(lambda: gate.tried == 1)
        await side.say(alice, room_id, *numbers(120, 1))
        await until(lambda: sending.waiting_events == 121)
        gate.hangs = False
        await until(lambda: said(peer) == numbers(121))
        await until(lambda: sending.waiting_servers == 0)

    assert [len(one.content["pdus"]) for one in peer.transactions] == [1, 50, 50, 20]
    assert len({one.txn_id for one in peer.transactions}) == 4


async def test_large_events_go_in_transactions_of_limited_size(side: SendingSide, peer: Peer) -> None:
    alice, room_id = await side.room(peer)
    large = [str(number) * 60_000 for number in range(8)] * 5
    await side.say(alice, room_id, *large)
    async with side.sending():
        await until(lambda: len(said(peer)) >= 40)

    assert said(peer)[-40:] == large
    assert all(len(orjson.dumps(one.content)) < 1_100_000 for one in peer.transactions)


async def test_what_was_not_sent_before_a_restart_is_sent_after_it(
    side: SendingSide, peer: Peer, other: Peer
) -> None:
    alice, room_id = await side.room(peer, other)
    gate = Gate.of(other)
    async with side.sending() as sending:
        await side.say(alice, room_id, "0")
        await until(lambda: said(peer) == said(other) == ["0"] and sending.waiting_servers == 0)
        gate.hangs = True
        await side.say(alice, room_id, *numbers(3, 1))
        await until(lambda: said(peer) == numbers(4))
    gate.hangs = False
    await side.say(alice, room_id, *numbers(3, 4))
    async with side.sending() as sending:
        await until(lambda: said(peer) == numbers(7) and sending.waiting_servers == 0)
        await side.say(alice, room_id, "7")
        await until(lambda: said(peer) == numbers(8) and sending.waiting_servers == 0)
    async with side.sending() as sending:
        await until(lambda: sending.waiting_servers == 0)

    assert said(peer) == numbers(8)
    assert sorted(set(said(other))) == numbers(8)
    assert said(other)[-8:] == numbers(8) or said(other)[-7:] == numbers(7, 1)


async def test_after_a_crash_the_same_events_come_in_the_same_transaction(
    side: SendingSide, peer: Peer
) -> None:
    alice, room_id = await side.room(peer)
    async with side.sending() as sending:
        await until(lambda: sending.waiting_servers == 0)
    await side.say(alice, room_id, *numbers(3))
    async with side.database.connection() as tx:
        before = await sent_positions.load(tx)
    async with side.sending():
        await until(lambda: said(peer) == numbers(3))
    async with side.database.connection() as tx:
        await sent_positions.save(tx, before.others, {}, [])
    side.clock.advance(1000)
    async with side.sending():
        await until(lambda: said(peer) == numbers(3) * 2)

    first, second = peer.transactions
    assert first.txn_id == second.txn_id
    assert first.content["pdus"] == second.content["pdus"]


async def test_a_server_that_was_away_gets_everything_when_its_time_comes(
    side: SendingSide, peer: Peer
) -> None:
    alice, room_id = await side.room(peer)
    gate = Gate.of(peer)
    async with side.sending() as sending:
        await side.say(alice, room_id, "0")
        await until(lambda: said(peer) == ["0"])
        gate.status = 503
        await side.say(alice, room_id, *numbers(60, 1))
        await until(lambda: side.destinations.failing() == [peer.name])
        await until(lambda: sending.waiting_events == 0 and sending.waiting_servers == 1)
        tried = gate.tried
        side.clock.advance(60_000)
        await until(lambda: gate.tried > tried)
        gate.status = 200
        await side.say(alice, room_id, *numbers(3, 61))
        await until(lambda: sending.waiting_events == 0)
        side.clock.advance(60_000)
        await until(lambda: said(peer) == numbers(64))
        await side.say(alice, room_id, "64")
        await until(lambda: said(peer) == numbers(65) and sending.waiting_servers == 0)
    assert sending.lag == 0


async def test_a_server_that_is_heard_from_gets_everything_at_once(side: SendingSide, peer: Peer) -> None:
    alice, room_id = await side.room(peer)
    gate = Gate.of(peer)
    gate.status = 500
    async with side.sending():
        await side.say(alice, room_id, "tea")
        await until(lambda: side.destinations.failing() == [peer.name])
        gate.status = 200
        await side.destinations.succeeded(peer.name)
        await until(lambda: said(peer) == ["tea"])


async def test_a_server_that_fails_is_left_alone(side: SendingSide, peer: Peer) -> None:
    alice, room_id = await side.room(peer)
    gate = Gate.of(peer)
    gate.status = 500
    async with side.sending() as sending:
        await side.say(alice, room_id, "0")
        await until(lambda: side.destinations.failing() == [peer.name])
        await side.say(alice, room_id, *numbers(10, 1))
        await until(lambda: sending.undistributed == 0)
        for _ in range(20):
            await asyncio.sleep(0)
            sending.retry()
    async with side.sending() as sending:
        await until(lambda: sending.waiting_servers == 1)
        sending.retry()

    assert gate.tried == 1
    assert said(peer) == []


async def test_a_dead_server_delays_no_other(
    side: SendingSide, peer: Peer, authority: Authority, clock: MovableClock
) -> None:
    alice, room_id = await side.room(peer)
    async with AsyncExitStack() as stack:
        dead = [await stack.enter_async_context(running_peer(authority, clock)) for _ in range(3)]
        gates = [Gate.of(one) for one in dead]
        for gate in gates:
            gate.hangs = True
            await side.join(room_id, gate.peer)
        await side.arrives(
            room_id, nobody := UserId(f"@bob:{NOBODY_THERE}"), "m.room.member", {"membership": "join"}, nobody
        )
        async with side.sending():
            await side.say(alice, room_id, *numbers(20))
            await until(lambda: said(peer) == numbers(20))
            assert [said(one) for one in dead] == [[], [], []]
            for gate in gates:
                gate.hangs = False
            await until(lambda: all(said(one) == numbers(20) for one in dead))


async def test_the_leave_is_the_last_that_a_server_gets(side: SendingSide, peer: Peer, other: Peer) -> None:
    alice, room_id = await side.room(peer, other)
    bob = UserId(f"@bob:{peer.name}")
    async with side.sending() as sending:
        await side.say(alice, room_id, "0")
        await side.membership(alice, room_id, bob, "leave")
        await side.say(alice, room_id, "1")
        await until(lambda: said(other) == ["0", "leave", "1"])
        await until(lambda: said(peer) == ["0", "leave"])
        await side.join(room_id, peer)
        await side.say(alice, room_id, "2")
        await until(lambda: said(other)[-1] == "2")
        await side.leave(room_id, bob)
        await side.say(alice, room_id, "3")
        await until(lambda: said(other)[-1] == "3" and sending.waiting_servers == 0)

    assert said(peer) == ["0", "leave", "2"]
    assert said(other) == ["0", "leave", "1", "2", "3"]


async def test_a_restart_knows_who_had_left(side: SendingSide, peer: Peer, other: Peer) -> None:
    alice, room_id = await side.room(peer, other)
    bob = UserId(f"@bob:{peer.name}")
    await side.say(alice, room_id, "0")
    carol = await side.join(room_id, peer, "carol")
    await side.leave(room_id, bob)
    await side.say(alice, room_id, "1")
    await side.membership(alice, room_id, carol, "ban")
    await side.say(alice, room_id, "2")
    await side.join(room_id, peer)
    await side.say(alice, room_id, "3")
    async with side.sending() as sending:
        await until(lambda: said(other) == ["0", "1", "ban", "2", "3"])
        await until(lambda: sending.waiting_servers == 0)

    assert said(peer) == ["0", "1", "ban", "3"]


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_server_hears_that_an_invite_was_withdrawn(
    side: SendingSide, peer: Peer, *, restarts: bool
) -> None:
    alice, room_id = await side.room()
    bob = UserId(f"@bob:{peer.name}")
    await side.membership(alice, room_id, bob, "invite")
    if restarts:
        await side.say(alice, room_id, "secret")
        await side.membership(alice, room_id, bob, "leave")
    async with side.sending() as sending:
        if not restarts:
            await side.say(alice, room_id, "secret")
            await side.membership(alice, room_id, bob, "leave")
        await until(lambda: said(peer) == ["leave"])
        await side.say(alice, room_id, "secret")
        await until(lambda: sending.undistributed == 0 and sending.waiting_servers == 0)
        await sending.save()
        await sending.sweep()

    async with side.database.connection() as tx:
        assert await tx.fetchval("SELECT count(*) FROM fed_extra") == 0
    assert said(peer) == ["leave"]


async def test_an_event_that_a_server_does_not_accept_is_not_sent_again(
    side: SendingSide, peer: Peer
) -> None:
    alice, room_id = await side.room(peer)

    def refuse(asked: Asked) -> Any:
        peer._take(asked)
        pdus = asked.content["pdus"]
        event_ids = [event_id_of(room_version("12"), pdu) for pdu in pdus]
        return json_answer({"pdus": {event_id: {"error": "no\ntea"} for event_id in event_ids}})

    peer.route("PUT", SEND, refuse)
    async with side.sending() as sending:
        await side.say(alice, room_id, *numbers(3))
        await until(lambda: said(peer) == numbers(3) and sending.waiting_servers == 0)


class Damage(OutgoingEvents):
    """Cannot sign some events."""

    def signed_bytes(self, version: RoomVersion, pdu: Pdu, *, is_unsigned: bool) -> bytes:
        if pdu.content.get("body") == "poison":
            raise ValueError("no signature fits")
        if pdu.content.get("body") == "large":
            return b" " * (MAX_EVENT_BYTES + 1)
        return super().signed_bytes(version, pdu, is_unsigned=is_unsigned)


@pytest.mark.invariant("SEC-FED-2")
@pytest.mark.parametrize("restarts", [False, True])
async def test_sec_fed_2_an_event_that_cannot_be_sent_blocks_no_other(
    side: SendingSide, peer: Peer, other: Peer, caplog: pytest.LogCaptureFixture, *, restarts: bool
) -> None:
    alice, room_id = await side.room(peer, other)
    texts = ["0", "poison", "1", "large", "2"]
    if restarts:
        await side.say(alice, room_id, *texts)
    async with side.sending(Damage) as sending:
        if not restarts:
            await side.say(alice, room_id, *texts)
        await until(lambda: said(peer) == said(other) == ["0", "1", "2"])
        await until(lambda: sending.waiting_servers == 0)

    assert sum("cannot be sent" in record.message for record in caplog.records) == 2


@pytest.mark.invariant("SEC-FED-2")
async def test_sec_fed_2_an_event_that_is_damaged_in_the_database_blocks_no_other(
    side: SendingSide, peer: Peer
) -> None:
    alice, room_id = await side.room(peer)
    [_, damaged, _] = await side.say(alice, room_id, *numbers(3))
    async with side.database.connection() as tx:
        query = "UPDATE events SET json = 'x' WHERE event_id = $1"
        await tx.execute(query, encode_event_id(damaged))
    async with side.sending() as sending:
        await until(lambda: said(peer) == ["0", "2"])
        await until(lambda: sending.waiting_servers == 0)


def refuse_poison(peer: Peer, status: int) -> None:
    """Let a peer refuse every transaction with a certain event."""

    def refuse(asked: Asked) -> Any:
        texts = [pdu["content"].get("body") for pdu in asked.content["pdus"]]
        return error_answer(status, "M_BAD_JSON") if "poison" in texts else None

    peer.route("PUT", SEND, refuse)


@pytest.mark.invariant("SEC-FED-2")
@pytest.mark.parametrize("status", [400, 413, 500])
async def test_sec_fed_2_an_event_for_which_a_server_refuses_transactions_is_given_up(
    side: SendingSide, peer: Peer, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing_transactions, "LONGEST_PAUSE_S", 0.0)
    alice, room_id = await side.room(peer)
    refuse_poison(peer, status)
    await side.say(alice, room_id, *numbers(10), "poison", *numbers(10, 10))
    async with side.sending() as sending:

        def is_done() -> bool:
            side.clock.advance(3600_000)
            sending.retry()
            return said(peer) == numbers(20) and sending.waiting_servers == 0

        await until(is_done)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
async def test_a_server_that_refuses_everything_loses_nothing(
    side: SendingSide, peer: Peer, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing_transactions, "LONGEST_PAUSE_S", 0.0)
    alice, room_id = await side.room(peer)
    gate = Gate.of(peer)
    gate.status = status
    await side.say(alice, room_id, *numbers(5))
    async with side.sending() as sending:
        while gate.tried < 25:
            side.clock.advance(3600_000)
            sending.retry()
            await asyncio.sleep(0.005)
        assert side.destinations.retry_ts(peer.name) is not None
        gate.status = 200
        side.clock.advance(3600_000)
        await until(lambda: [text for text in said(peer) if text] == numbers(5))


async def test_events_that_are_too_many_to_wait_are_read(
    side: SendingSide, peer: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation_sending, "MAX_TOLD", 3)
    alice, room_id = await side.room(peer)
    async with side.sending() as sending:
        await side.say(alice, room_id, "0")
        await until(lambda: said(peer) == ["0"] and sending.waiting_servers == 0)
        batch = [side.store.send(alice, room_id, text) for text in numbers(30, 1)]
        await asyncio.gather(*batch)
        await side.join(room_id, other)
        await side.say(alice, room_id, "31")
        await until(lambda: len(said(peer)) == 32 and said(other) == ["31"])
        await until(lambda: sending.waiting_servers == 0)

    assert set(said(peer)) == set(numbers(32))


async def test_a_slow_server_gets_all_in_order_however_little_waits_in_memory(
    side: SendingSide, peer: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destination_queue, "MAX_EVENTS", 4)
    monkeypatch.setattr(destination_queue, "MAX_PDUS", 3)
    monkeypatch.setattr(destination_queue, "READ_WINDOW", 5)
    monkeypatch.setattr(outgoing_transactions, "READ_AT_ONCE", 4)
    alice, room_id = await side.room(peer, other)
    _, elsewhere = await side.room(other)
    gate = Gate.of(peer)
    async with side.sending() as sending:
        for part in range(6):
            gate.hangs = part % 2 == 0
            for number in range(part * 20, part * 20 + 20):
                await side.say(alice, room_id, str(number))
                if number % 3 == 0:
                    bob = UserId(f"@bob:{other.name}")
                    await side.arrives(elsewhere, bob, "m.room.message", {"body": "?"})
        gate.hangs = False
        await until(lambda: said(peer) == said(other) == numbers(120))
        await until(lambda: sending.waiting_servers == 0)


async def test_a_full_memory_keeps_nothing_from_arriving(
    side: SendingSide, peer: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, room_id = await side.room(peer, other)
    gate = Gate.of(peer)
    async with side.sending() as sending:
        monkeypatch.setattr(sending._queues._budget, "max_bytes", 2000)
        gate.hangs = True
        await side.say(alice, room_id, *numbers(30))
        await until(lambda: said(other) == numbers(30))
        assert sending.waiting_events < 10
        gate.hangs = False
        await until(lambda: said(peer) == numbers(30) and sending.waiting_servers == 0)
        assert sending._queues._budget.used_bytes == 0


async def test_nothing_goes_to_a_server_that_we_do_not_talk_to(
    side: SendingSide, peer: Peer, other: Peer
) -> None:
    side.denied = frozenset({peer.name})
    alice, room_id = await side.room(peer, other)
    mallory = UserId("@mallory:no name")
    await side.arrives(room_id, mallory, "m.room.member", {"membership": "join"}, mallory)
    await side.say(alice, room_id, "0")
    async with side.sending() as sending:
        await until(lambda: said(other) == ["0"])
        await side.say(alice, room_id, "1")
        await until(lambda: said(other) == ["0", "1"] and sending.waiting_servers == 0)

    assert side.destinations.failing() == []
    assert peer.server.received == []


async def test_a_server_that_starts_greets_the_servers_of_its_rooms(
    side: SendingSide, peer: Peer, other: Peer, authority: Authority, clock: MovableClock
) -> None:
    async with running_peer(authority, clock) as failing:
        alice, room_id = await side.room(peer, other, failing)
        side.clock.now -= LONG_MS
        await side.membership(alice, room_id, UserId(f"@bob:{other.name}"), "leave")
        async with side.sending() as sending:
            await until(lambda: said(other) == ["leave"])
            await until(lambda: sending.waiting_servers == 0)
        await side.destinations.failed(failing.name, 0)
        for one in (peer, other, failing):
            one.transactions.clear()
        async with side.sending() as sending:
            await until(lambda: len(peer.transactions) == 1 and sending.waiting_servers == 0)
            await side.say(alice, room_id, "0")
            await until(lambda: said(peer) == ["0"])
        side.clock.advance(federation_sending.GREETED_ROOMS_MS + 3600_000)
        async with side.sending():
            await until(lambda: said(failing) == ["0"])

    assert [len(transaction.content["pdus"]) for transaction in peer.transactions] == [0, 1]
    assert other.transactions == []


async def test_positions_are_noted_of_servers_that_lack_something_and_once_for_all_others(
    side: SendingSide, peer: Peer, other: Peer
) -> None:
    alice, room_id = await side.room(peer, other)
    gate = Gate.of(peer)
    async with side.sending() as sending:
        await side.say(alice, room_id, "0")
        await until(lambda: said(peer) == said(other) == ["0"] and sending.waiting_servers == 0)
        gate.status = 500
        before = side.store.stream.position
        await side.say(alice, room_id, "1")
        await until(lambda: said(other) == ["0", "1"] and sending.waiting_servers == 1)
        await until(lambda: gate.tried > 1)
        await sending.save()
        async with side.database.connection() as tx:
            saved = await sent_positions.load(tx)
        gate.status = 200
        side.clock.advance(10_000)
        await until(lambda: sending.waiting_servers == 0)
        await sending.save()
        async with side.database.connection() as tx:
            saved_later = await sent_positions.load(tx)

    assert {server.name: pos for server, pos in saved.behind.items()} == {peer.name: before}
    assert saved.others == saved_later.others == side.store.stream.position
    assert saved_later.behind == {}


async def test_servers_read_what_could_not_be_given_out(
    side: SendingSide, peer: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, room_id = await side.room(peer)
    async with side.sending() as sending:
        await side.say(alice, room_id, "0")
        await until(lambda: said(peer) == ["0"] and sending.waiting_servers == 0)
        with monkeypatch.context() as patched:
            patched.setattr(sending._rooms, "of", None)
            await side.join(room_id, other)
            await side.say(alice, room_id, "1")
            await until(lambda: sending.undistributed == 0)
        await side.say(alice, room_id, "2")
        await until(lambda: said(peer) == ["0", "1", "2"] and said(other) == ["1", "2"])


async def test_an_outage_of_the_database_only_delays(
    side: SendingSide, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, room_id = await side.room(peer)
    await side.say(alice, room_id, "0")
    tried = 0

    async def fail(*_: Any) -> Any:
        nonlocal tried
        tried += 1
        raise Unavailable("the database is gone")

    with monkeypatch.context() as patched:
        patched.setattr(sent_positions, "due", fail)
        async with side.sending() as sending:
            await until(lambda: tried > 1)
            patched.undo()
            await until(lambda: said(peer) == ["0"] and sending.waiting_servers == 0)


async def test_a_server_that_is_heard_from_all_the_time_but_fails_is_not_tried_all_the_time(
    side: SendingSide, peer: Peer
) -> None:
    alice, room_id = await side.room(peer)
    gate = Gate.of(peer)
    gate.status = 500
    async with side.sending():
        await side.say(alice, room_id, "0")
        for _ in range(50):
            await side.destinations.succeeded(peer.name)
            await asyncio.sleep(0.01)
        tried = gate.tried
        gate.status = 200
        await side.destinations.succeeded(peer.name)
        await until(lambda: said(peer) == ["0"])

    assert 1 <= tried <= 4
