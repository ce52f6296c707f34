"""What an upgraded room hands down, whatever its events say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.canonical_json import MAX_INTEGER, check_canonical
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import RoomAlias, UserId
from homeserver.protocol.power_levels import check_power_levels
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.upgraded_power_levels import levels_of_new_room, levels_of_silenced_room
from homeserver.services.upgraded_state import OldRoom, Upgrade
from storage.room_heads import RoomRef
from tests.protocol.json_values import any_values
from tests.protocol.rooms import ALICE, BOB, MIA, V11, V12, make_event

LAX: Final = ROOM_VERSIONS["6"]
"""Levels may be strings, and rooms can neither be knocked at nor be restricted."""
RESTRICTED: Final = ROOM_VERSIONS["9"]
"""A room can be knocked at or be restricted, but not both."""

LEVELS = any_values() | st.integers(-200, 200) | st.integers(-200, 200).map(str)
NAMES = st.sampled_from([ALICE, BOB, "bob", "@nobody", "m.room.tombstone", "m.room.name", "room"])


def is_storable(content: JsonObject) -> bool:
    """Whether any event can say so: all versions refuse halves of surrogate pairs."""
    return "\\ud" not in repr(content)


CONTENTS = (
    st.dictionaries(
        st.sampled_from(["ban", "invite", "state_default", "users_default", "historical"]), LEVELS
    )
    | st.dictionaries(
        st.sampled_from(["users", "events", "notifications", "ban"]),
        st.dictionaries(NAMES, LEVELS) | any_values(),
    )
).filter(is_storable)


def create_of(version: RoomVersion, **content: Any) -> Pdu:
    said = {"creator": ALICE, "room_version": version.version, **content}
    return make_event(version, "m.room.create", ALICE, "", said, prev_events=())


def levels_in(version: RoomVersion, content: JsonObject) -> Pdu:
    return make_event(version, "m.room.power_levels", ALICE, "", content, room_id="!old:test")


def old_room(version: RoomVersion, *events: Pdu, bans: tuple[Pdu, ...] = (), **content: Any) -> OldRoom:
    create = create_of(version, **content)
    state = {event.key: event for event in (create, *events)}
    return OldRoom(RoomRef(1, create.room_id, version), 1, state, bans, [RoomAlias("#tea:test")], None)


def drafts(old: OldRoom, version: RoomVersion) -> dict[str, EventDraft]:
    """What the new room gets, by event type."""
    return {draft.type: draft for draft in Upgrade(ALICE, version, []).drafts(old)}


@given(st.sampled_from([*ROOM_VERSIONS.values(), LAX]), st.sampled_from([*ROOM_VERSIONS.values()]), CONTENTS)
def test_whatever_the_power_levels_are_the_new_version_takes_what_becomes_of_them(
    old: RoomVersion, new: RoomVersion, content: JsonObject
) -> None:
    creators = {ALICE, MIA}
    content_of_new = levels_of_new_room(old, create_of(old), levels_in(old, content), new, creators)
    create = create_of(new, additional_creators=[MIA])

    check_canonical(content_of_new)
    check_power_levels(new, levels_in(new, content_of_new), create, None)


@given(st.sampled_from([*ROOM_VERSIONS.values(), LAX]), CONTENTS)
def test_the_levels_of_the_old_room_are_not_changed_in_memory(
    version: RoomVersion, content: JsonObject
) -> None:
    before = repr(content)
    create, power_levels = create_of(version), levels_in(version, content)
    levels_of_silenced_room(version, create, power_levels)
    for new in ROOM_VERSIONS.values():
        levels_of_new_room(version, create, power_levels, new, {ALICE})

    assert repr(content) == before


def test_levels_in_strings_become_integers() -> None:
    old = levels_in(LAX, {"ban": " 60 ", "users": {ALICE: "100", "bob": 5}, "events": {"m.room.name": "10"}})

    assert levels_of_new_room(LAX, create_of(LAX), old, V11, {ALICE}) == {
        "ban": 60,
        "users": {ALICE: 100},
        "events": {"m.room.name": 10},
    }


@pytest.mark.parametrize(
    ("content", "level"),
    [
        ({}, 150),
        ({"events": {"m.room.tombstone": 200}}, 200),
        ({"state_default": 170}, 171),
        ({"state_default": MAX_INTEGER}, MAX_INTEGER),
    ],
)
def test_in_version_12_a_tombstone_takes_more_than_other_state(content: JsonObject, level: int) -> None:
    levels = levels_of_new_room(V11, create_of(V11), levels_in(V11, content), V12, {ALICE})

    assert levels["events"] == {"m.room.tombstone": level}


def test_a_level_of_tombstones_that_version_12_allows_stays() -> None:
    content = {"events": {"m.room.tombstone": 75}}
    levels = levels_of_new_room(V12, create_of(V12), levels_in(V12, content), V12, {ALICE})

    assert levels == {"users": {}, **content}


def test_creators_who_outranked_everybody_get_the_highest_level_where_there_are_none() -> None:
    create = create_of(V12, additional_creators=[MIA])
    content = {"users": {BOB: 120}, "events": {"m.room.tombstone": 150}}

    levels = levels_of_new_room(V12, create, levels_in(V12, content), V11, {ALICE})
    assert levels["users"] == {ALICE: 150, MIA: 150, BOB: 120}


@pytest.mark.parametrize(
    ("old", "new", "users"),
    [(V11, V11, {ALICE: 100}), (V11, V12, {}), (V12, V11, {ALICE: 100}), (V12, V12, {})],
)
def test_a_room_without_power_levels_is_its_creators(
    old: RoomVersion, new: RoomVersion, users: dict[UserId, int]
) -> None:
    assert levels_of_new_room(old, create_of(old), None, new, {ALICE})["users"] == users


def test_a_room_without_power_levels_is_silenced_too() -> None:
    raised = {"events_default": 50, "invite": 50}

    assert levels_of_silenced_room(V11, create_of(V11), None) == {"users": {ALICE: 100}, **raised}
    assert levels_of_silenced_room(V12, create_of(V12), None) == {"users": {}, **raised}


@pytest.mark.parametrize(
    ("rule", "version", "expected"),
    [
        ("restricted", V12, "restricted"),
        ("restricted", LAX, "invite"),
        ("knock", LAX, "invite"),
        ("knock_restricted", RESTRICTED, "restricted"),
        ("knock_restricted", replace(RESTRICTED, restricted_join_rules=frozenset()), "knock"),
        ("knock_restricted", LAX, "invite"),
        ("public", LAX, "public"),
        ("private", V12, "private"),
        ("org.example", V12, "org.example"),
        (["restricted"], V12, ["restricted"]),
        (None, V12, None),
    ],
)
def test_a_join_rule_that_the_version_does_not_know_lets_nobody_else_in(
    rule: Any, version: RoomVersion, expected: Any
) -> None:
    content = {"join_rule": rule, "allow": [{"type": "m.room_membership", "room_id": "!a:test"}]}
    event = make_event(V11, "m.room.join_rules", ALICE, "", content, room_id="!old:test")

    assert drafts(old_room(V11, event), version)["m.room.join_rules"].content == {
        **content,
        "join_rule": expected,
    }


@pytest.mark.parametrize(
    ("rule", "expected"), [("knock", "invite"), ("restricted", "invite"), ("public", "public")]
)
def test_a_join_rule_that_only_the_new_version_knows_lets_nobody_else_in(rule: str, expected: str) -> None:
    event = make_event(LAX, "m.room.join_rules", ALICE, "", {"join_rule": rule}, room_id="!old:test")

    assert drafts(old_room(LAX, event), V12)["m.room.join_rules"].content == {"join_rule": expected}


def test_what_canonical_json_does_not_allow_is_left_out() -> None:
    content = {"deny": ["coffee.test", 1.5], "allow": [-0.5, "*"], "since": 1.5, "number": 2**53}
    acl = make_event(V11, "m.room.server_acl", ALICE, "", content, room_id="!old:test")
    ban = make_event(
        V11, "m.room.member", ALICE, BOB, {"membership": "ban", "reason": 1.5, "x": 1}, room_id="!old:test"
    )
    found = drafts(old_room(V11, acl, bans=(ban,)), V12)

    assert found["m.room.server_acl"].content == {"deny": ["coffee.test"], "allow": ["*"]}
    assert found["m.room.member"].content == {"membership": "ban"}


@pytest.mark.parametrize(
    ("named", "moving"),
    [
        ({"alias": "#tea:test", "alt_aliases": ["#far:away.test"]}, {"alias": "#tea:test"}),
        ({"alias": "#far:away.test", "alt_aliases": ["#tea:test", 5, {}]}, {"alt_aliases": ["#tea:test"]}),
        ({"alias": {}, "alt_aliases": "#tea:test"}, None),
    ],
)
def test_only_aliases_that_lead_to_the_room_are_named_by_the_new_one(
    named: JsonObject, moving: JsonObject | None
) -> None:
    event = make_event(V11, "m.room.canonical_alias", ALICE, "", named, room_id="!old:test")
    draft = drafts(old_room(V11, event), V12).get("m.room.canonical_alias")

    assert (None if draft is None else draft.content) == moving


@pytest.mark.parametrize("odd", [{"type": 5, "m.federate": "no"}, {"type": None, "m.federate": True}])
def test_odd_creation_content_is_not_handed_down(odd: JsonObject) -> None:
    content = Upgrade(ALICE, V11, []).creation_content(create_of(V11, **odd), None)

    assert content.keys() == {"predecessor"}
