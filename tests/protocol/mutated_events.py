"""Events in which anything may stand anywhere, and what happens to an event before the rules are asked."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from typing import Any, Final

from hypothesis import strategies as st

from homeserver.protocol.canonical_json import canonical_event, write_json
from homeserver.protocol.errors import BadSignature, ProtocolError
from homeserver.protocol.event_hashes import content_hash
from homeserver.protocol.events import Pdu, client_event, parse_pdu, redact_pdu
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.signing import SigningKey, required_signers, sign_event
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import encode_base64
from tests.protocol.json_values import any_values

_KEYS: Final = (
    "type",
    "state_key",
    "content",
    "sender",
    "room_id",
    "prev_events",
    "auth_events",
    "depth",
    "origin_server_ts",
    "hashes",
    "signatures",
    "unsigned",
    "redacts",
    "event_id",
    "membership",
)


@st.composite
def mutated(draw: st.DrawFn, event: JsonObject) -> JsonObject:
    """An event of which one to three keys, or keys of objects in it, are anything or missing.

    Half of them are changed in their content only: these may be let in.
    """
    event = deepcopy(event)
    start: Any = event if draw(st.booleans()) else event["content"]
    for _ in range(draw(st.integers(1, 3))):
        target = start
        while isinstance(target, dict) and target and draw(st.booleans()):
            inner = [value for value in target.values() if isinstance(value, dict)]
            if not inner:
                break
            target = draw(st.sampled_from(inner))
        key = draw(st.sampled_from(sorted({*_KEYS, *target})))
        if draw(st.booleans()):
            target.pop(key, None)
        else:
            target[key] = draw(any_values())
    return event


def sealed(version: RoomVersion, event: JsonObject, server_name: ServerName, key: SigningKey) -> JsonObject:
    """The event with the hash that it has now, and signed again, as far as that can be done."""
    with suppress(ProtocolError):
        event = {**event, "hashes": {"sha256": encode_base64(content_hash(version, event))}}
        event = sign_event(version, {**event, "signatures": {}}, server_name, key)
    return event


def use(version: RoomVersion, pdu: Pdu) -> None:
    """What happens to an event that was let in, until the authorization rules are asked: all must go well."""
    canonical_event(version, pdu.json)
    write_json(client_event(pdu, with_room_id=True))
    redacted = redact_pdu(version, pdu)
    write_json(client_event(redacted, with_room_id=True))
    assert parse_pdu(version, redacted.json, event_id=pdu.event_id, pushed=False).json == redacted.json
    with suppress(BadSignature):
        required_signers(version, pdu)
