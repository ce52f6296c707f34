"""Filters: what they let through, and what is no filter."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.errors import BadJson
from homeserver.protocol.filters import parse_event_filter, parse_filter
from homeserver.protocol.identifiers import RoomId
from tests.protocol.rooms import V12, make_event

BOB = "@bob:test"


def allows(wanted: dict[str, Any], content: dict[str, Any] | None = None) -> bool:
    event = make_event(V12, "m.room.message", BOB, None, content or {}, room_id="!room:test")
    return parse_event_filter(wanted).allows(event)


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        ({}, True),
        ({"unknown": ["key"]}, True),
        ({"types": None}, True),
        ({"types": []}, False),
        ({"senders": []}, False),
        ({"rooms": []}, False),
        ({"not_types": []}, True),
        ({"types": ["m.room.message"]}, True),
        ({"types": ["m.room.messag"]}, False),
        ({"types": ["room.message"]}, False),
        ({"types": ["*"]}, True),
        ({"types": ["m.*.message"]}, True),
        ({"types": ["m?room.message"]}, False),
        ({"types": ["m.room.*"], "not_types": ["*message"]}, False),
        ({"types": ["m.room.[a-z]*"]}, False),
        ({"senders": [BOB]}, True),
        ({"senders": [BOB], "not_senders": [BOB]}, False),
        ({"rooms": ["!room:test"]}, True),
        ({"not_rooms": ["!room:test"]}, False),
        ({"contains_url": False}, True),
        ({"contains_url": True}, False),
        ({"rel_types": ["m.thread"]}, False),
        ({"not_rel_types": ["m.thread"]}, True),
    ],
)
def test_a_filter_lets_an_event_through_or_not(wanted: dict[str, Any], allowed: bool) -> None:
    assert allows(wanted) is allowed


def test_a_filter_looks_into_the_content() -> None:
    thread = {"m.relates_to": {"rel_type": "m.thread"}}
    assert allows({"contains_url": True}, {"url": "mxc://test/x"})
    assert not allows({"contains_url": False}, {"url": "mxc://test/x"})
    for prefix in ("", "org.matrix.msc3874."):
        assert allows({f"{prefix}rel_types": ["m.thread"]}, thread)
        assert not allows({f"{prefix}not_rel_types": ["m.thread"]}, thread)


@pytest.mark.parametrize("odd", [None, 1, [], {}, "x", {"rel_type": ["m.thread"]}, {"rel_type": {}}])
def test_odd_content_passes_as_content_without_a_relation(odd: object) -> None:
    assert not allows({"rel_types": ["m.thread"]}, {"m.relates_to": odd, "url": odd})
    assert allows({"not_rel_types": ["m.thread"]}, {"m.relates_to": odd, "url": odd})


@given(st.lists(st.text("ab*", max_size=6), max_size=3), st.text("ab", max_size=8))
def test_a_star_stands_for_any_text(types: list[str], event_type: str) -> None:
    expected = any(fnmatchcase(event_type, wanted) for wanted in types)
    assert parse_event_filter({"types": types}).allows_type(event_type) is expected
    assert parse_event_filter({"not_types": types}).allows_type(event_type) is not expected


def test_many_stars_take_no_long_time() -> None:
    hostile = parse_event_filter({"types": ["*a" * 200 + "*b"]})
    started = time.process_time()
    assert not hostile.allows_type("a" * 255)
    assert time.process_time() - started < 0.5


def test_a_whole_filter_is_read() -> None:
    found = parse_filter(
        {
            "room": {
                "rooms": ["!room:test"],
                "not_rooms": ["!other:test"],
                "include_leave": True,
                "timeline": {"limit": 0, "types": ["m.*"]},
                "state": {"lazy_load_members": True, "include_redundant_members": True},
            },
            "presence": {"types": []},
            "event_fields": ["content.body"],
            "event_format": "federation",
        }
    )
    assert found.room.allows_room(RoomId("!room:test"))
    assert not found.room.allows_room(RoomId("!other:test"))
    assert not found.room.allows_room(RoomId("!third:test"))
    assert found.room.include_leave
    assert found.room.timeline.limit == 0
    assert (found.room.state.lazy_load_members, found.room.state.include_redundant_members) == (True, True)
    assert (found.event_fields, found.event_format) == (("content.body",), "federation")
    assert not found.presence.allows_all
    assert parse_filter({}).room.timeline.allows_all


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        [],
        "x",
        1,
        {"room": []},
        {"room": {"rooms": "!room:test"}},
        {"room": {"rooms": ["room"]}},
        {"room": {"rooms": [1]}},
        {"room": {"timeline": []}},
        {"room": {"timeline": {"limit": "1"}}},
        {"room": {"timeline": {"limit": True}}},
        {"room": {"timeline": {"limit": -1}}},
        {"room": {"timeline": {"senders": ["bob"]}}},
        {"room": {"timeline": {"types": {}}}},
        {"room": {"timeline": {"types": ["x"] * 1001}}},
        {"room": {"state": {"lazy_load_members": 1}}},
        {"event_fields": [1]},
        {"event_format": "xml"},
        {"event_format": 1},
        {"presence": 1},
    ],
)
def test_what_is_no_filter_is_refused(wanted: object) -> None:
    with pytest.raises(BadJson):
        parse_filter(wanted)
