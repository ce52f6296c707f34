from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.errors import InvalidEvent, ProtocolError
from homeserver.protocol.events import redact_pdu
from homeserver.protocol.redaction import redact
from homeserver.protocol.strict_json import JsonObject
from tests.protocol.json_values import any_values, canonical_values
from tests.protocol.rooms import V11, V12, VERSIONS, make_event

SINCE_11 = pytest.mark.parametrize("version", [V11, V12], ids=["11", "12"])
"""What older versions keep is in test_room_versions."""

KEPT = (
    "auth_events",
    "content",
    "depth",
    "event_id",
    "hashes",
    "origin_server_ts",
    "prev_events",
    "room_id",
    "sender",
    "signatures",
    "state_key",
    "type",
)
SIGNED = {"mxid": "@a:b", "token": "t"}

CONTENTS: list[tuple[str, JsonObject, JsonObject]] = [
    ("m.room.message", {"body": "x", "membership": "join"}, {}),
    ("m.room.create", {"creator": "@a:b", "x": {"y": 1}}, {"creator": "@a:b", "x": {"y": 1}}),
    (
        "m.room.member",
        {"membership": "join", "displayname": "x", "join_authorised_via_users_server": "@a:b"},
        {"membership": "join", "join_authorised_via_users_server": "@a:b"},
    ),
    (
        "m.room.member",
        {"third_party_invite": {"signed": SIGNED, "x": 1}},
        {"third_party_invite": {"signed": SIGNED}},
    ),
    ("m.room.member", {"third_party_invite": {"signed": None}}, {"third_party_invite": {"signed": None}}),
    ("m.room.member", {"third_party_invite": {"display_name": "x"}}, {"third_party_invite": {}}),
    ("m.room.member", {"third_party_invite": {}}, {"third_party_invite": {}}),
    ("m.room.member", {"membership": "invite", "third_party_invite": "signed"}, {"membership": "invite"}),
    ("m.room.member", {"third_party_invite": ["signed"]}, {}),
    ("m.room.join_rules", {"join_rule": "x", "allow": [1], "y": 1}, {"join_rule": "x", "allow": [1]}),
    (
        "m.room.power_levels",
        {
            "ban": 1,
            "events": {"a": 1},
            "events_default": 2,
            "invite": 3,
            "kick": 4,
            "redact": 5,
            "state_default": 6,
            "users": {"@a:b": 1},
            "users_default": 7,
            "notifications": {"room": 1},
        },
        {
            "ban": 1,
            "events": {"a": 1},
            "events_default": 2,
            "invite": 3,
            "kick": 4,
            "redact": 5,
            "state_default": 6,
            "users": {"@a:b": 1},
            "users_default": 7,
        },
    ),
    ("m.room.history_visibility", {"history_visibility": "x", "y": 1}, {"history_visibility": "x"}),
    ("m.room.redaction", {"redacts": "$x", "reason": "y"}, {"redacts": "$x"}),
    ("m.room.aliases", {"aliases": ["#a:b"]}, {}),
]


@SINCE_11
@pytest.mark.parametrize(("event_type", "content", "kept"), CONTENTS)
def test_of_the_content_remains_what_the_room_version_says(
    version: Any, event_type: str, content: JsonObject, kept: JsonObject
) -> None:
    event = {"type": event_type, "content": content}
    before = deepcopy(event)
    assert redact(version, event) == {"type": event_type, "content": kept}
    assert event == before


@SINCE_11
def test_of_the_event_remains_what_the_room_version_says(version: Any) -> None:
    gone = ("unsigned", "redacts", "origin", "membership", "prev_state", "replaces_state", "x")
    event: JsonObject = {key: {} for key in (*KEPT, *gone)}
    assert redact(version, event) == {key: {} for key in KEPT}


@VERSIONS
@given(st.sampled_from([event_type for event_type, _, _ in CONTENTS]), st.data())
def test_redacting_twice_changes_nothing_more(version: Any, event_type: str, data: st.DataObject) -> None:
    names = st.sampled_from(["membership", "third_party_invite", "users", "redacts", "allow", "x"])
    content = data.draw(st.dictionaries(names, canonical_values()))
    once = redact(version, {"type": event_type, "content": content, "x": 1})
    assert redact(version, once) == once


@VERSIONS
def test_a_redacted_pdu_keeps_its_id_and_all_that_names_its_place(version: Any) -> None:
    pdu = make_event(version, "m.room.message", "@alice:test", content={"body": "x"}, room_id="!tea:test")
    redacted = redact_pdu(version, pdu)
    assert (redacted.event_id, redacted.content, redacted.json["content"]) == (pdu.event_id, {}, {})
    assert (redacted.sender, redacted.prev_events, redacted.depth) == (pdu.sender, pdu.prev_events, pdu.depth)
    assert pdu.content == {"body": "x"}


@pytest.mark.parametrize("event", [{}, {"content": []}, {"type": "m.room.member", "content": None}])
def test_an_event_without_content_cannot_be_redacted(event: JsonObject) -> None:
    with pytest.raises(InvalidEvent):
        redact(V12, event)


@VERSIONS
@given(any_values(), any_values())
def test_no_event_raises_anything_but_errors_of_the_core(version: Any, event_type: Any, content: Any) -> None:
    try:
        redact(version, {"type": event_type, "content": content})
    except ProtocolError:
        assert not isinstance(content, dict)
