"""Picking fields of events by dot-separated paths."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.protocol.event_fields import only_fields, parse_field_path

EVENT = {
    "type": "m.room.message",
    "content": {"body": "hi", "m.relates_to": {"rel_type": "m.thread", "key": 1}, "back\\slash": 2},
}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("type", ("type",)),
        ("content.body", ("content", "body")),
        (r"content.m\.relates_to.key", ("content", "m.relates_to", "key")),
        (r"content.back\\slash", ("content", "back\\slash")),
        (r"content.\x", ("content", r"\x")),
        ("content\\", ("content\\",)),
        ("", ("",)),
        ("a..b.", ("a", "", "b", "")),
    ],
)
def test_a_path_names_properties(text: str, names: tuple[str, ...]) -> None:
    assert parse_field_path(text) == names


@pytest.mark.parametrize(
    ("fields", "picked"),
    [
        ([], {}),
        (["type", "unsigned"], {"type": "m.room.message"}),
        (["type.inner", "content.body.inner", "content.none"], {}),
        (["content.body"], {"content": {"body": "hi"}}),
        (["content"], {"content": EVENT["content"]}),
        (["content", "content.body"], {"content": EVENT["content"]}),
        (["content.body", "content"], {"content": EVENT["content"]}),
        (
            [r"content.m\.relates_to.key", r"content.m\.relates_to.rel_type"],
            {"content": {"m.relates_to": {"rel_type": "m.thread", "key": 1}}},
        ),
    ],
)
def test_an_event_keeps_only_the_fields_that_are_wanted(fields: list[str], picked: dict[str, Any]) -> None:
    assert only_fields(EVENT, [parse_field_path(field) for field in fields]) == picked
