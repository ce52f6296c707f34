"""The core, in this process: what the rules of Matrix cost without any input or output."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final

from homeserver.protocol.auth_events import auth_state_keys, select_auth_events
from homeserver.protocol.auth_rules import check_auth
from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.events import EventDraft, Pdu, StateKey, build_pdu, parse_pdu
from homeserver.protocol.identifiers import EventId, ServerName, UserId
from homeserver.protocol.signing import SigningKey, VerifyKey, sign_event, verify_event_signatures
from homeserver.protocol.state_resolution import resolve
from homeserver.protocol.strict_json import JsonObject, parse_json
from storage.event_codec import CODEC, decode_event, encode_event
from tests.benchmarks import resolution
from tests.benchmarks.measuring import Row, Scale, cpu_of
from tests.protocol.rooms import ALICE, V12, Room, make_event

TEXT: Final = "A message of the length that people write: some words, at times a line or two. " * 3


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """The computations that each event passes, and state resolution."""
    room = Room.with_members(V12)
    key = SigningKey.from_seed("bench", bytes(range(32)))
    server = ServerName("test")
    draft = EventDraft("m.room.message", {"msgtype": "m.text", "body": TEXT})
    pdu = build_message(room, draft)
    keys = auth_state_keys(V12, pdu.type, pdu.sender, None, pdu.content)
    state = {key: room.state[key] for key in keys if key in room.state}
    signed = sign_event(V12, pdu.json, server, key)
    received = replace(pdu, json=signed)
    verify_keys = {server: {key.key_id: VerifyKey(key.public_key, valid_until_ts=1 << 60)}}
    canonical = canonical_json(signed)
    stored = encode_event(canonical)
    operations: dict[str, Callable[[], object]] = {
        "strict JSON parse": lambda: parse_json(canonical),
        "canonical JSON": lambda: canonical_json(signed),
        "build_pdu, a message": lambda: build_message(room, draft),
        "check_auth, a message": lambda: check_auth(V12, pdu, state),
        "parse_pdu, format and hashes": lambda: parse_pdu(V12, signed),
        "sign an event": lambda: sign_event(V12, pdu.json, server, key),
        "verify an event's signature": lambda: verify_event_signatures(V12, received, verify_keys),
        "event codec, encode": lambda: encode_event(canonical),
        "event codec, decode": lambda: decode_event(CODEC, stored),
    }
    for name, operation in operations.items():
        note = f"event of {len(canonical)} bytes" if operation is operations["strict JSON parse"] else ""
        yield Row(name, cpu_of(operation, scale.seconds / 60), note=note)
    yield Row("event codec, size", note=f"{len(canonical)} -> {len(stored)} bytes")
    states, events = forked_room(scale.resolved_members)
    started = time.process_time()
    resolved = resolve(V12, states, events)
    assert len(resolved) == len(states[0])
    yield Row(
        "state resolution, two forks",
        time.process_time() - started,
        note=f"{scale.resolved_members:,} members, {2 * scale.resolved_members:,} conflicting events",
    )
    for row in resolution.rows(scale):
        yield row


def build_message(room: Room, draft: EventDraft) -> Pdu:
    """The next message of Alice in a room."""
    return build_pdu(
        V12,
        room_id=room.create.room_id,
        draft=draft,
        sender=ALICE,
        prev_events=(EventId("$" + "a" * 43),),
        auth_events=select_auth_events(V12, draft.type, ALICE, None, draft.content, room.state),
        depth=7,
        origin_server_ts=1_700_000_000_000,
    )


def forked_room(members: int) -> tuple[list[dict[StateKey, EventId]], dict[EventId, Pdu]]:
    """Two states of one room that differ in the profile of each member, and all events."""
    room = Room(V12)
    events = {room.create.event_id: room.create}

    def add(event_type: str, sender: str, state_key: str, content: JsonObject, ts: int) -> Pdu:
        selected = select_auth_events(V12, event_type, UserId(sender), state_key, content, room.state)
        event = make_event(
            V12,
            event_type,
            sender,
            state_key,
            content,
            room_id=room.create.room_id,
            auth_events=selected,
            origin_server_ts=ts,
        )
        events[event.event_id] = event
        return event

    def put(*drafts: tuple[str, str, str, JsonObject]) -> None:
        for draft in drafts:
            event = add(*draft, len(events))
            room.state[event.key] = event

    put(
        ("m.room.member", ALICE, ALICE, {"membership": "join"}),
        ("m.room.power_levels", ALICE, "", {"users": {}}),
        ("m.room.join_rules", ALICE, "", {"join_rule": "public"}),
    )
    users = [f"@user{number}:test" for number in range(members)]
    joined: JsonObject = {"membership": "join"}
    put(*(("m.room.member", user, user, joined) for user in users))
    states = []
    for fork in ("one", "two"):
        state = {key: event.event_id for key, event in room.state.items()}
        for user in users:
            content: JsonObject = {"membership": "join", "displayname": fork}
            event = add("m.room.member", user, user, content, len(events))
            state[event.key] = event.event_id
        states.append(state)
    return states, events
