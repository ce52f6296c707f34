"""Power levels: what they say, and rule 9 of version 11, rule 10 of version 12, on who may change them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.power_levels import CREATOR_LEVEL, PowerLevels
from homeserver.protocol.room_versions import LevelFormat, RoomVersion
from tests.protocol.rooms import ALICE, BOB, DAVE, MAX, MIA, V11, V12, ZOE, Draft, Room, power_levels
from tests.protocol.rule_cases import Case, in_each_version, outcome, refusing_rule

STRING_LEVELS = replace(V11, level_format=LevelFormat.STRINGS)
TOP_LEVEL = ("users_default", "events_default", "state_default", "ban", "redact", "kick", "invite")
USERS = {ZOE: 100, MIA: 50, MAX: 50}
MAX_INT = 2**53 - 1

NO_LEVELS: list[Any] = ["50", 50.0, True, None, [50]]
NO_MAPS: list[Any] = [None, [], 5, "x", {"a": "5"}, {"a": True}, {"a": 1.0}, {"a": None}, {"a": {}}]
NO_USERS: list[Any] = [
    None,
    [],
    5,
    "x",
    {ZOE: "100"},
    {ZOE: True},
    {"zoe": 1},
    {"@zoe": 1},
    {"@zoe:te st": 1},
]

TYPES = [
    *(
        Case(f"{key} {value!r}", power_levels(**{key: value}), "9.1", "10.1")
        for key in TOP_LEVEL
        for value in NO_LEVELS
    ),
    *(
        Case(f"{key} {value!r}", power_levels(**{key: value}), "9.2", "10.2")
        for key in ("events", "notifications")
        for value in NO_MAPS
    ),
    *(Case(f"users {value!r}", power_levels(users=value), "9.3", "10.3") for value in NO_USERS),
    Case("a historical user ID", power_levels(users={**USERS, "@Old User:test": 1})),
    Case("no users", power_levels(state_default=50)),
    Case("fields that no rule reads", power_levels(historical="x", comment=None)),
    Case("nothing changed", power_levels()),
]


def changed(name: str, old: Draft, new: Draft, v11: str | None = None, v12: str | None = None) -> Case:
    return Case(name, new, v11, v12, (old,))


# MIA has level 50 and may send m.room.power_levels.
OPEN: dict[str, Any] = {"events": {"m.room.power_levels": 0}}

CHANGES = [
    *(
        case
        for key in TOP_LEVEL
        if key != "users_default"
        for case in (
            changed(f"{key} added", power_levels(**OPEN), power_levels(MIA, **{**OPEN, key: 50})),
            changed(
                f"{key} added too high",
                power_levels(**OPEN),
                power_levels(MIA, **{**OPEN, key: 51}),
                "9.5.2",
                "10.6.2",
            ),
            changed(
                f"{key} raised too high",
                power_levels(**{**OPEN, key: 10}),
                power_levels(MIA, **{**OPEN, key: 51}),
                "9.5.2",
                "10.6.2",
            ),
            changed(
                f"{key} lowered from too high",
                power_levels(**{**OPEN, key: 51}),
                power_levels(MIA, **{**OPEN, key: 10}),
                "9.5.1",
                "10.6.1",
            ),
            changed(
                f"{key} removed from too high",
                power_levels(**{**OPEN, key: 51}),
                power_levels(MIA, **OPEN),
                "9.5.1",
                "10.6.1",
            ),
            changed(
                f"{key} left too high",
                power_levels(**{**OPEN, key: 51}),
                power_levels(MIA, **{**OPEN, key: 51}),
            ),
            changed(f"{key} removed", power_levels(**{**OPEN, key: 50}), power_levels(MIA, **OPEN)),
        )
    ),
    changed(
        "users_default added too high",
        power_levels(**OPEN),
        power_levels(MIA, **OPEN, users_default=51),
        "9.5.2",
        "10.6.2",
    ),
    changed(
        "users_default removed from too high",
        power_levels(**OPEN, users_default=51),
        power_levels(MIA, **OPEN),
        "9.5.1",
        "10.6.1",
    ),
    changed(
        "a type added too high",
        power_levels(**OPEN),
        power_levels(MIA, events={"m.room.power_levels": 0, "a": 51}),
        "9.7.1",
        "10.8.1",
    ),
    changed(
        "a type raised too high",
        power_levels(**OPEN),
        power_levels(MIA, events={"m.room.power_levels": 51}),
        "9.7.1",
        "10.8.1",
    ),
    changed(
        "a type lowered from too high",
        power_levels(events={"m.room.power_levels": 0, "a": 51}),
        power_levels(MIA, events={"m.room.power_levels": 0, "a": 50}),
        "9.6.1",
        "10.7.1",
    ),
    changed(
        "all types removed, one of them too high",
        power_levels(events={"m.room.power_levels": 0, "a": 51}),
        power_levels(MIA),
        "9.6.1",
        "10.7.1",
    ),
    changed(
        "a notification added too high",
        power_levels(**OPEN),
        power_levels(MIA, **OPEN, notifications={"room": 51}),
        "9.7.1",
        "10.8.1",
    ),
    changed(
        "a notification removed from too high",
        power_levels(**OPEN, notifications={"room": 51}),
        power_levels(MIA, **OPEN, notifications={}),
        "9.6.1",
        "10.7.1",
    ),
    changed(
        "types and notifications within reach",
        power_levels(**OPEN, notifications={"room": 50}),
        power_levels(MIA, events={"m.room.power_levels": 50, "a": 50}, notifications={"room": 10}),
    ),
    changed(
        "an equal lowered",
        power_levels(**OPEN),
        power_levels(MIA, **OPEN, users={**USERS, MAX: 0}),
        "9.8.1",
        "10.9.1",
    ),
    changed(
        "an equal removed",
        power_levels(**OPEN),
        power_levels(MIA, **OPEN, users={ZOE: 100, MIA: 50}),
        "9.8.1",
        "10.9.1",
    ),
    changed(
        "a superior removed",
        power_levels(**OPEN),
        power_levels(MIA, **OPEN, users={MIA: 50, MAX: 50}),
        "9.8.1",
        "10.9.1",
    ),
    changed("oneself lowered", power_levels(**OPEN), power_levels(MIA, **OPEN, users={**USERS, MIA: 49})),
    changed("oneself removed", power_levels(**OPEN), power_levels(MIA, **OPEN, users={ZOE: 100, MAX: 50})),
    changed(
        "oneself raised",
        power_levels(**OPEN),
        power_levels(MIA, **OPEN, users={**USERS, MIA: 51}),
        "9.9.1",
        "10.10.1",
    ),
    changed(
        "another added too high",
        power_levels(**OPEN),
        power_levels(MIA, **OPEN, users={**USERS, BOB: 51}),
        "9.9.1",
        "10.10.1",
    ),
    changed("another added", power_levels(**OPEN), power_levels(MIA, **OPEN, users={**USERS, BOB: 50})),
    changed(
        "an inferior removed",
        power_levels(**OPEN, users={**USERS, BOB: 49}),
        power_levels(MIA, **OPEN),
    ),
    changed(
        "the whole map of users gone",
        power_levels(**OPEN),
        Draft("m.room.power_levels", MIA, "", {**OPEN}),
        "9.8.1",
        "10.9.1",
    ),
    changed("by one without the level", power_levels(), power_levels(BOB), "7", "8"),
    Case("the creator named", power_levels(users={**USERS, ALICE: 0}), None, "10.4"),
    Case("the creator named in a malformed map", power_levels(users={**USERS, ALICE: "0"}), "9.3", "10.3"),
]


@pytest.mark.invariant("SEC-AUTH-1")
@in_each_version([*TYPES, *CHANGES])
def test_sec_auth_1_power_levels_are_changed_by_those_who_may(
    version: RoomVersion, case: Case, rule: str | None
) -> None:
    assert outcome(version, case) == rule


@pytest.mark.parametrize(
    ("version", "content", "rule"),
    [
        (V11, {"users": {ALICE: 100}}, None),
        (V11, {"users": {ALICE: MAX_INT}}, None),
        (V11, {"ban": "50"}, "9.1"),
        (V11, {"users": {ALICE: "100"}}, "9.3"),
        (V12, {"users": {ZOE: MAX_INT}}, None),
        (V12, {"ban": "50"}, "10.1"),
        (V12, {"users": {"alice": 100}}, "10.3"),
        (V12, {"users": {ALICE: 100}}, "10.4"),
        (V12, {"users": {BOB: 100}}, "10.4"),
    ],
)
def test_the_first_power_levels_need_only_be_well_formed(
    version: RoomVersion, content: dict[str, object], rule: str | None
) -> None:
    room = Room.with_members(version, additional_creators=[BOB])
    del room.state["m.room.power_levels", ""]
    event = room.event(Draft("m.room.power_levels", ALICE, "", content))

    assert refusing_rule(version, event, room.state) == rule


def test_a_creator_changes_any_level() -> None:
    room = Room.with_members(V12)
    room.put(power_levels(users={ZOE: MAX_INT}, ban=MAX_INT))

    event = room.event(Draft("m.room.power_levels", ALICE, "", {"users": {BOB: MAX_INT}, "kick": MAX_INT}))
    assert refusing_rule(V12, event, room.state) is None


def test_without_an_event_the_creator_has_100_and_the_others_0() -> None:
    levels = PowerLevels.of(V11, Room(V11).create, None)

    assert (levels.user_level(ALICE), levels.user_level(BOB)) == (100, 0)
    assert (levels.level_for_event("a", is_state=True), levels.level_for_event("a", is_state=False)) == (
        50,
        0,
    )
    assert (levels.ban, levels.kick, levels.redact, levels.invite) == (50, 50, 50, 0)


def test_with_an_event_the_creator_of_version_11_has_no_more_than_it_says() -> None:
    room = Room(V11)
    levels = PowerLevels.of(V11, room.create, room.event(power_levels(users_default=3)))

    assert (levels.user_level(ALICE), levels.user_level(BOB), levels.user_level(ZOE)) == (3, 3, 100)


def test_creators_of_version_12_outrank_every_integer() -> None:
    room = Room(V12, additional_creators=[BOB])
    for event in (None, room.event(power_levels(users={ZOE: MAX_INT}))):
        levels = PowerLevels.of(V12, room.create, event)
        assert levels.user_level(ALICE) == levels.user_level(BOB) == CREATOR_LEVEL > MAX_INT


def test_before_version_11_the_creator_is_the_one_that_the_content_names() -> None:
    version = replace(V11, creator_in_content=True)
    levels = PowerLevels.of(version, Room(version, creator=BOB).create, None)

    assert (levels.user_level(ALICE), levels.user_level(BOB)) == (0, 100)


def test_levels_are_those_of_the_event() -> None:
    room = Room(V12)
    event = room.event(
        power_levels(
            events={"a": 7},
            ban=1,
            kick=2,
            redact=3,
            invite=4,
            state_default=5,
            events_default=6,
            users_default=-8,
        )
    )
    levels = PowerLevels.of(V12, room.create, event)

    assert (levels.ban, levels.kick, levels.redact, levels.invite) == (1, 2, 3, 4)
    assert (levels.level_for_event("a", is_state=True), levels.level_for_event("a", is_state=False)) == (7, 7)
    assert (levels.level_for_event("b", is_state=True), levels.level_for_event("b", is_state=False)) == (5, 6)
    assert levels.user_level(BOB) == -8


def test_redacting_what_others_have_sent_takes_the_redact_level() -> None:
    room = Room(V11)
    levels = PowerLevels.of(V11, room.create, room.event(power_levels()))

    assert levels.can_redact_others(MIA)
    assert not levels.can_redact_others(BOB)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("50", 50), (" +0050\t", 50), ("-3", -3), ("0", 0), (50, 50),
        ("", None), ("1_000", None), ("5.0", None), ("٣", None), ("+-3", None), ("0x1", None), (True, None),
        ("9" * 5000, None),
    ],
)  # fmt: skip
def test_before_version_10_a_level_may_be_a_string_that_looks_like_an_integer(
    text: object, level: int | None
) -> None:
    room = Room(STRING_LEVELS)
    levels = PowerLevels.of(
        STRING_LEVELS, room.create, room.event(power_levels(users={ZOE: text}, users_default=1))
    )

    assert levels.user_level(ZOE) == (1 if level is None else level)


def test_before_version_10_only_the_levels_of_users_must_be_well_formed() -> None:
    def rule_for(draft: Draft) -> str | None:
        room = Room.with_members(STRING_LEVELS)
        room.put(power_levels(users={ZOE: "100", MIA: 50}))
        return refusing_rule(STRING_LEVELS, room.event(draft), room.state)

    assert rule_for(power_levels(users={ZOE: 100, MIA: "50"}, ban=[], events=3)) is None
    assert rule_for(power_levels(users={ZOE: 100, MIA: "fifty"})) is not None
    assert rule_for(power_levels(users={ZOE: "101"})) == "9.9.1"


LEVELS = st.integers(-5, 105) | st.sampled_from([0, 50, 100])
CONTENTS = st.fixed_dictionaries(
    {"users": st.dictionaries(st.sampled_from([ZOE, MIA, MAX, BOB, DAVE]), LEVELS)},
    optional={
        **dict.fromkeys(TOP_LEVEL, LEVELS),
        "events": st.dictionaries(st.sampled_from(["a", "b", "m.room.power_levels"]), LEVELS),
        "notifications": st.dictionaries(st.sampled_from(["room", "x"]), LEVELS),
    },
)


@given(st.sampled_from([V11, V12]), CONTENTS, CONTENTS)
def test_nobody_gives_or_takes_more_than_he_has(
    version: RoomVersion, old: dict[str, dict[str, int]], new: dict[str, dict[str, int]]
) -> None:
    room = Room.with_members(version)
    room.put(Draft("m.room.power_levels", ZOE, "", old))
    before = PowerLevels.of(version, room.create, room.state["m.room.power_levels", ""])
    event = room.event(Draft("m.room.power_levels", MIA, "", new))
    own = before.user_level(MIA)

    if refusing_rule(version, event, room.state) is None:
        after = PowerLevels.of(version, room.create, event)
        for user_id in old["users"]:
            if user_id != MIA and old["users"][user_id] >= own:
                assert after.user_level(user_id) == before.user_level(user_id)
        for user_id in (MIA, *new["users"]):
            assert after.user_level(user_id) <= max(own, before.user_level(user_id))
