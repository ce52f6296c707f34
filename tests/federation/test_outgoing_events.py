"""Whatever our users send, other servers can take it."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import pytest

from homeserver.protocol.events import MAX_EVENT_BYTES, Pdu, parse_pdu
from homeserver.protocol.signing import verify_event_signatures
from tests.clients import Client
from tests.federation.homeservers import name_of
from tests.federation.peers import Peer
from tests.federation.played_rooms import PlayedRoom, user_of
from tests.federation.waiting import until
from tests.servers import RunningServer

ODD_CONTENTS: Final[list[Any]] = [
    {},
    {"": {"": {"": [None, True, False, 0, -1]}}},
    {"number": 2**53 - 1, "negative": -(2**53 - 1)},
    {"too large": 2**53},
    {"half": 0.5, "minus zero": -0.0},
    {"nul": "\0", "quotes": '"\\\u2028\u007f', "emoji": "\U0001f375"},
    {"signatures": {"x": 1}, "unsigned": {"age": 1}, "hashes": None, "event_id": "$x"},
    {"m.relates_to": "no object", "redacts": ["no", "text"], "membership": 7},
    {"deep": [[[[[[[[[["tea"]]]]]]]]]]},
]


@pytest.mark.invariant("SEC-FED-3")
async def test_sec_fed_3_all_that_is_sent_can_be_taken_by_others(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room_id = await alice.create_room()
    room = await PlayedRoom.entered(here, [peer], user_of(peer, "tea"), room_id)
    base = f"/_matrix/client/v3/rooms/{quote(room_id)}"
    deep: Any = "tea"
    for _ in range(100):
        deep = [deep]
    fitting = "x" * (MAX_EVENT_BYTES - 1500)
    contents = [*ODD_CONTENTS, {"deep": deep}, {"body": fitting}, {"body": fitting + "x" * 1500}]
    requests = [
        (f"{base}/send/{quote(event_type, safe='')}/{uuid4()}", content)
        for content in contents
        for event_type in ("m.room.message", "m.room.redaction", "\u00fc" * 120)
    ]
    requests += [
        (f"{base}/state/{event_type}/{quote(state_key, safe='')}", content)
        for content in contents
        for event_type, state_key in (("m.room.topic", ""), ("tea", "\u00fc" * 127), ("tea", "\0"))
    ]
    requests += [(f"{base}/state/m.room.power_levels/", content) for content in contents]
    accepted = []
    for path, content in requests:
        answer = await alice.put(path, content)
        assert answer.status in (200, 400, 403, 404, 413), (path, answer.body)
        if answer.status == 200:
            accepted.append(answer.body["event_id"])
    last = await alice.say(room_id, "the last")

    async def has_last() -> bool:
        return any(pdu.event_id == last for pdu in room.sent_to(peer))

    await until(has_last)
    received: dict[str, Pdu] = {pdu.event_id: pdu for pdu in room.sent_to(peer)}
    assert len(accepted) > 20
    assert set(accepted) <= set(received)
    for pdu in received.values():
        parsed = parse_pdu(room.version, pdu.json, event_id=pdu.event_id, pushed=True)
        assert parsed.content == pdu.content  # its content hash fits
        keys = here.services.server_keys.own.verify_keys
        verify_event_signatures(room.version, parsed, {name_of(here): keys})
