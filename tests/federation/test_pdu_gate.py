"""The gate that every event from outside passes."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeserver.protocol.auth_events import AUTHORISER
from homeserver.protocol.event_hashes import event_id_of
from homeserver.protocol.events import EventDraft, Pdu, build_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.signing import ServerKeys, SigningKey, VerifyKey, sign_event
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import pdu_gate
from homeserver.services.pdu_gate import VERIFIED_HERE, PduGate, RefusedPdu
from homeserver.services.signing_key_file import new_signing_key
from storage.database import Database
from tests.federation.peers import (
    KEY_LIST,
    Answer,
    Authority,
    OurSide,
    Peer,
    json_answer,
    our_side,
    running_peer,
)
from tests.federation.test_key_ring import HOUR_MS, answer_queries
from tests.protocol.json_values import any_values
from tests.protocol.mutated_events import mutated, sealed, use
from tests.protocol.rooms import V12, VERSIONS
from tests.servers import MovableClock

ROOM: Final = RoomId("!" + "r" * 43)
ROOT: Final = Path(__file__).parents[2]
SIGNED_BY_US: Final = {"homeserver/services/out_of_band.py", "homeserver/services/remote_invites.py"}
"""These parse what they have put our signature on, which may have become too large by it."""
FOR_COMMANDS: Final = {"homeserver/protocol/document_events.py"}
"""These read documents for commands that print what the rules say; the server may not import them."""


@pytest.fixture
def gate(ours: OurSide) -> PduGate:
    return ours.gate


def unsigned(
    peer: Peer, event_type: str = "m.room.message", version: RoomVersion = V12, /, **content: Any
) -> Pdu:
    """An event of a user of a peer's, hashed and not signed."""
    state_keys = {"m.room.member": f"@tea:{peer.name}", "m.room.power_levels": ""}
    return build_pdu(
        version,
        room_id=ROOM if version.room_id_is_create_hash else RoomId("!tea:test"),
        draft=EventDraft(event_type, {"body": "tea", **content}, state_keys.get(event_type)),
        sender=UserId(f"@tea:{peer.name}"),
        prev_events=[EventId("$" + "p" * 43)],
        auth_events=[EventId("$" + "a" * 43)],
        depth=7,
        origin_server_ts=peer.clock(),
    )


def signed(pdu: Pdu, *peers: Peer, key: SigningKey | None = None) -> JsonObject:
    event = pdu.json
    for peer in peers:
        event = sign_event(V12, event, peer.name, key or peer.keys[0])
    return event


async def verify(gate: PduGate, *events: Any) -> Sequence[Pdu | RefusedPdu]:
    return await gate.verify(V12, events, pushed=True)


async def test_a_signed_event_is_let_in_as_it_is(gate: PduGate, peer: Peer) -> None:
    event = signed(unsigned(peer), peer)
    [pdu] = await verify(gate, {**event, "unsigned": {"age": 5}})

    assert isinstance(pdu, Pdu)
    assert pdu.json == event
    assert pdu.event_id == unsigned(peer).event_id


@pytest.mark.invariant("SEC-SIGN-3")
@pytest.mark.parametrize(
    "fault",
    [
        "no signature", "unknown key", "wrong key", "another server's", "no base64", "other algorithm",
        "policy server", "one good, one bad", "altered after signing",
    ],
)  # fmt: skip
async def test_sec_sign_3_an_event_without_a_good_signature_is_refused(
    gate: PduGate, peer: Peer, notary: Peer, fault: str
) -> None:
    pdu, key_id = unsigned(peer), peer.keys[0].key_id
    good = signed(pdu, peer)
    signature = good["signatures"][peer.name][key_id]
    other = SigningKey.from_seed(key_id.removeprefix("ed25519:"), bytes([7]) * 32)
    forged = signed(pdu, peer, key=other)["signatures"][peer.name][key_id]
    signatures: JsonObject = {
        "no signature": {},
        "unknown key": signed(pdu, peer, key=new_signing_key())["signatures"],
        "wrong key": {peer.name: {key_id: forged}},
        "another server's": signed(pdu, notary)["signatures"],
        "no base64": {peer.name: {key_id: "tea?"}},
        "other algorithm": {peer.name: {"ed448:1": signature}},
        "policy server": {peer.name: {"ed25519:policy_server": signature}},
        "one good, one bad": {peer.name: {key_id: forged, "ed25519:unknown": signature}},
        "altered after signing": good["signatures"],
    }
    event = {**pdu.json, "signatures": signatures[fault]}
    if fault == "altered after signing":
        event["depth"] = 8
    [outcome] = await verify(gate, event)

    assert isinstance(outcome, RefusedPdu)
    assert (outcome.event_id == pdu.event_id) == (fault != "altered after signing")


@pytest.mark.invariant("SEC-SIGN-3")
async def test_sec_sign_3_a_key_is_good_for_what_it_signed_while_it_was_valid(
    gate: PduGate, peer: Peer
) -> None:
    old, before = peer.keys[0], signed(unsigned(peer), peer)
    retired_ts = peer.clock()
    peer.clock.advance(1)
    after = signed(unsigned(peer), peer)
    peer.keys = [new_signing_key()]
    peer.old_keys = {old.key_id: VerifyKey(old.public_key, retired_ts)}
    renewed = signed(unsigned(peer), peer)
    peer.clock.advance(2 * HOUR_MS)
    peer.valid_until_ts = peer.clock() + HOUR_MS
    future = {**unsigned(peer).json, "origin_server_ts": peer.valid_until_ts + 1}
    outcomes = await verify(gate, before, after, renewed, sign_event(V12, future, peer.name, peer.keys[0]))

    assert [isinstance(outcome, Pdu) for outcome in outcomes] == [True, False, True, False]


@pytest.mark.invariant("SEC-SIGN-3")
async def test_sec_sign_3_a_notary_knows_the_older_keys_that_a_server_forgot(
    database: Database, authority: Authority, clock: MovableClock, peer: Peer, notary: Peer
) -> None:
    old = signed(unsigned(peer), peer)
    answer_queries(notary, peer.response())
    peer.keys = [new_signing_key()]
    new = signed(unsigned(peer), peer)
    async with our_side(database, authority, clock, notaries=[notary.name]) as ours:
        outcomes = await verify(ours.gate, new, old)

    assert all(isinstance(outcome, Pdu) for outcome in outcomes)


@pytest.mark.invariant("SEC-SIGN-3")
async def test_sec_sign_3_who_lets_someone_into_a_restricted_room_signs_too(
    gate: PduGate, peer: Peer, notary: Peer
) -> None:
    join = unsigned(peer, "m.room.member", membership="join", **{AUTHORISER: f"@zoe:{notary.name}"})
    nobody = unsigned(peer, "m.room.member", membership="join", **{AUTHORISER: "zoe"})
    leave = unsigned(peer, "m.room.member", membership="leave", **{AUTHORISER: f"@zoe:{notary.name}"})
    outcomes = await verify(
        gate, signed(join, peer, notary), signed(join, peer), signed(join, notary), signed(nobody, peer),
        signed(leave, peer),
    )  # fmt: skip

    assert [isinstance(outcome, Pdu) for outcome in outcomes] == [True, False, False, False, True]


@pytest.mark.invariant("SEC-SIGN-4")
async def test_sec_sign_4_what_was_altered_is_redacted_under_the_same_id(gate: PduGate, peer: Peer) -> None:
    pdu = unsigned(peer, "m.room.member", membership="join", displayname="Tea")
    altered = signed(pdu, peer)
    altered["content"] = {**altered["content"], "displayname": "Mallory"}
    [outcome] = await verify(gate, altered)

    assert isinstance(outcome, Pdu)
    assert outcome.event_id == pdu.event_id
    assert outcome.content == {"membership": "join"}
    assert outcome.json == redact(V12, altered)


@pytest.mark.invariant("SEC-SIGN-4")
async def test_sec_sign_4_an_event_is_what_it_was_asked_for(gate: PduGate, peer: Peer) -> None:
    first, second = unsigned(peer, n=1), unsigned(peer, n=2)
    claimed = {**signed(second, peer), "event_id": first.event_id}
    wanted = [first.event_id, first.event_id, first.event_id]
    events = [signed(first, peer), signed(second, peer), claimed]
    good, *others = await gate.verify(V12, events, pushed=False, event_ids=wanted)

    assert isinstance(good, Pdu)
    assert [(type(one), one.event_id) for one in others] == [(RefusedPdu, first.event_id)] * 2


CONTENTS: Final[dict[str, JsonObject]] = {
    "m.room.message": {},
    "m.room.member": {"membership": "join", AUTHORISER: "@zoe:absent.test"},
    "m.room.power_levels": {"users": {"@zoe:absent.test": 100}, "ban": 50},
    "m.room.redaction": {"redacts": "$" + "r" * 43},
}


@st.composite
def deliveries(draw: st.DrawFn, version: RoomVersion, peer: Peer) -> list[Any]:
    """What a server may send as events: any JSON, and its own events in which anything was changed."""
    delivery: list[Any] = draw(st.lists(any_values(), max_size=2))
    for event_type in draw(st.lists(st.sampled_from(list(CONTENTS)), min_size=1, max_size=3)):
        built = unsigned(peer, event_type, version, **CONTENTS[event_type])
        event = sign_event(version, built.json, peer.name, peer.keys[0])
        changed = draw(mutated(event))
        resealed = sealed(version, changed, peer.name, peer.keys[0])
        delivery.append(draw(st.sampled_from([event, changed, resealed, resealed])))
    return draw(st.permutations(delivery))


@pytest.mark.invariant("SEC-JSON-2")
@VERSIONS
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
async def test_sec_json_2_nothing_that_comes_raises_anything(
    gate: PduGate, peer: Peer, version: RoomVersion, data: st.DataObject
) -> None:
    events = data.draw(deliveries(version, peer))
    before = deepcopy(events)

    outcomes = await gate.verify(version, events, pushed=data.draw(st.booleans()))

    assert repr(events) == repr(before)
    for event, outcome in zip(events, outcomes, strict=True):
        if isinstance(outcome, Pdu):
            assert outcome.event_id == event_id_of(version, event)
            use(version, outcome)


async def test_one_bad_event_does_not_spoil_the_others(gate: PduGate, peer: Peer) -> None:
    good = signed(unsigned(peer), peer)
    bad: list[Any] = [
        None, 5, "tea", [], {}, {**good, "content": 5}, {**good, "depth": 1.5}, {**good, "hashes": {}},
        {**good, "signatures": {peer.name: 5}}, {**good, "signatures": {}}, {**good, "sender": "tea"},
        {**good, "prev_events": ["$p"] * 21}, {**good, "content": {"body": "x" * 70_000}},
    ]  # fmt: skip
    events = [event for one in bad for event in (one, good)]

    for events_at_once in (events[:VERIFIED_HERE], events):
        outcomes = await verify(gate, *events_at_once)
        assert [isinstance(one, Pdu) for one in outcomes] == [False, True] * (len(events_at_once) // 2)


async def test_history_may_name_more_events_than_what_is_pushed(gate: PduGate, peer: Peer) -> None:
    many = {**unsigned(peer).json, "prev_events": [f"$p{number}" for number in range(30)]}
    event = sign_event(V12, many, peer.name, peer.keys[0])
    [pushed] = await gate.verify(V12, [event], pushed=True)
    [fetched] = await gate.verify(V12, [event], pushed=False)

    assert isinstance(pushed, RefusedPdu)
    assert isinstance(fetched, Pdu)


async def test_all_keys_are_fetched_at_once_and_once(
    gate: PduGate, authority: Authority, clock: MovableClock, peer: Peer, notary: Peer
) -> None:
    async with running_peer(authority, clock) as dead:
        dead.answers[KEY_LIST] = lambda: json_answer({}, 503)
        peers = [peer, dead, notary]
        events = [signed(unsigned(one, number=n), one) for n in range(2 * VERIFIED_HERE) for one in peers]
        outcomes = await verify(gate, *events)
        asked = [one.asked(KEY_LIST) for one in peers]

    assert [isinstance(one, Pdu) for one in outcomes] == [True, False, True] * (2 * VERIFIED_HERE)
    assert asked == [1, 1, 1]


async def test_who_pushes_events_waits_for_keys_only_so_long(
    gate: PduGate, peer: Peer, notary: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was asked for events may take as long as it takes."""
    answered = asyncio.Event()

    async def slow() -> Answer:
        await answered.wait()
        return json_answer(notary.response())

    notary.answers[KEY_LIST] = slow
    events = [signed(unsigned(one), one) for one in (peer, notary)]
    await verify(gate, events[0])
    monkeypatch.setattr(pdu_gate, "PUSHED_PATIENCE_S", 0)
    async with asyncio.timeout(20):
        pushed = await verify(gate, *events)
    async with asyncio.TaskGroup() as tasks:
        asked_for = tasks.create_task(gate.verify(V12, events, pushed=False))
        await asyncio.sleep(0)
        answered.set()

    assert [isinstance(one, Pdu) for one in pushed] == [True, False]
    assert [isinstance(one, Pdu) for one in asked_for.result()] == [True, True]


class CountedAnswers:
    """A key ring that finds nothing, and how many servers it was asked for at once."""

    def __init__(self) -> None:
        self.asked: set[ServerName] = set()
        self.running = self.most = 0

    async def keys_for(self, server_name: ServerName, *_: object) -> ServerKeys:
        self.asked.add(server_name)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return {}


async def test_only_so_many_servers_are_asked_for_keys_at_once(
    database: Database, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pdu_gate, "SERVERS_AT_ONCE", 3)
    ring: Any = CountedAnswers()
    names = {ServerName(f"{number}.test") for number in range(10)}
    events = [signed(unsigned(replace(peer, name=name)), replace(peer, name=name)) for name in names]
    outcomes = await PduGate(ring, database).verify(V12, events, pushed=False)

    assert all(isinstance(outcome, RefusedPdu) for outcome in outcomes)
    assert (ring.asked, ring.most) == (names, 3)


async def test_nobody_is_asked_for_the_keys_of_what_is_not_signed(gate: PduGate, peer: Peer) -> None:
    join = unsigned(peer, "m.room.member", membership="join", **{AUTHORISER: "@zoe:absent.test"})
    outcomes = await verify(gate, unsigned(peer).json, signed(join, peer))

    assert all(isinstance(outcome, RefusedPdu) for outcome in outcomes)
    assert peer.server.received == []


@pytest.mark.invariant("SEC-SIGN-2")
def test_sec_sign_2_nothing_but_the_gate_takes_events_from_outside() -> None:
    """parse_pdu is how JSON becomes a Pdu that has not been one of ours."""
    callers: dict[str, set[str]] = {"parse_pdu": set(), "verify_event_signatures": set()}
    for package in ("homeserver", "federation", "client_api", "storage"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
                if isinstance(node, ast.Attribute):
                    names.add(node.attr)
                for name in names & set(callers):
                    callers[name].add(file.relative_to(ROOT).as_posix())

    gate = "homeserver/services/pdu_gate.py"
    assert callers["verify_event_signatures"] == {gate}
    assert callers["parse_pdu"] - SIGNED_BY_US - FOR_COMMANDS == {gate}
