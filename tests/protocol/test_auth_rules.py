"""The authorization rules but those of membership and of changing power levels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.rooms import (
    ALICE,
    BOB,
    DAVE,
    EVE,
    IVY,
    LEO,
    MIA,
    V11,
    V12,
    VERSIONS,
    ZOE,
    Draft,
    Room,
    create_content_of,
    make_event,
    member,
    message,
    power_levels,
)
from tests.protocol.rule_cases import Case, in_each_version, outcome, refusing_rule


def third_party_invite(sender: str) -> Draft:
    return Draft("m.room.third_party_invite", sender, "token", {"display_name": "d"})


def topic(sender: str, state_key: str = "") -> Draft:
    return Draft("m.room.topic", sender, state_key, {"topic": "tea"})


CASES = [
    Case("a message of a member", message(BOB)),
    Case("a message of a stranger", message(DAVE), "5", "6"),
    Case("a message of one who left", message(LEO), "5", "6"),
    Case("a message of one who is invited", message(IVY), "5", "6"),
    Case("a message of one who is banned", message(EVE), "5", "6"),
    Case("a third-party invite", third_party_invite(BOB)),
    Case("a third-party invite by a stranger", third_party_invite(DAVE), "5", "6"),
    Case(
        "a third-party invite without the level",
        third_party_invite(BOB),
        "6.1",
        "7.1",
        (power_levels(invite=1),),
    ),
    Case(
        "a third-party invite is not subject to the levels of types",
        third_party_invite(BOB),
        state=(power_levels(events={"m.room.third_party_invite": 100}, state_default=100),),
    ),
    Case("a state event without the level", topic(BOB), "7", "8"),
    Case("a state event with the level", topic(MIA)),
    Case(
        "a state event of a type with a lower level",
        topic(BOB),
        state=(power_levels(events={"m.room.topic": 0}),),
    ),
    Case("a message event without the level", message(BOB), "7", "8", (power_levels(events_default=1),)),
    Case(
        "a message event of a type with a level",
        message(MIA),
        "7",
        "8",
        (power_levels(events={"m.room.message": 51}),),
    ),
    Case("a state event by the creator", topic(ALICE), "7", None),
    Case("a redaction is a message like any other", Draft("m.room.redaction", BOB, None, {"redacts": "$x"})),
    Case("a user ID of another as state key", topic(ZOE, MIA), "8", "9"),
    Case("one's own user ID as state key", topic(ZOE, ZOE)),
    Case("a state key that only begins like a user ID", topic(ZOE, "@"), "8", "9"),
    Case("a state key with a user ID inside", topic(ZOE, f"_{MIA}")),
    Case("a creator's state key is his own", topic(ALICE, MIA), "7", "9"),
]


@pytest.mark.invariant("SEC-AUTH-1")
@in_each_version(CASES)
def test_sec_auth_1_an_event_is_allowed_or_refused_by_its_rule(
    version: RoomVersion, case: Case, rule: str | None
) -> None:
    assert outcome(version, case) == rule


@VERSIONS
def test_without_power_levels_members_talk_and_the_creator_rules(version: RoomVersion) -> None:
    room = Room.with_members(version)
    del room.state["m.room.power_levels", ""]

    assert refusing_rule(version, room.event(message(BOB)), room.state) is None
    assert refusing_rule(version, room.event(topic(ALICE)), room.state) is None
    number = "7" if version.version in ("6", "7", "8", "9", "10", "11") else "8"
    assert refusing_rule(version, room.event(topic(BOB)), room.state) == number


def create_event(
    version: RoomVersion,
    content: dict[str, Any],
    *,
    prev_events: tuple[EventId, ...] = (),
    room_id: str | None = None,
) -> Pdu:
    return make_event(version, "m.room.create", ALICE, "", content, prev_events=prev_events, room_id=room_id)


@VERSIONS
@pytest.mark.invariant("SEC-AUTH-1")
def test_sec_auth_1_a_create_event_begins_a_room_of_its_version(version: RoomVersion) -> None:
    content = create_content_of(version)

    assert refusing_rule(version, create_event(version, content), {}) is None
    later = create_event(version, content, prev_events=(EventId("$before"),))
    assert refusing_rule(version, later, {}) == "1.1"
    for named in ("0", "13", "org.example.mine", "", int(version.version), None, [version.version]):
        assert refusing_rule(version, create_event(version, {**content, "room_version": named}), {}) == "1.3"
    del content["room_version"]  # as a redaction does up to version 10
    assert refusing_rule(version, create_event(version, content), {}) is None


@pytest.mark.invariant("SEC-AUTH-1")
def test_sec_auth_1_the_room_id_of_version_11_is_of_the_senders_server() -> None:
    content = {"room_version": "11"}

    assert refusing_rule(V11, create_event(V11, content, room_id="!tea:test"), {}) is None
    for room_id in ("!tea:elsewhere", "!tea:test:8448", f"!{'a' * 43}", "!tea:Test"):
        assert refusing_rule(V11, create_event(V11, content, room_id=room_id), {}) == "1.2"


@pytest.mark.invariant("SEC-AUTH-1")
def test_sec_auth_1_a_create_event_of_version_12_has_no_room_id() -> None:
    assert refusing_rule(V12, create_event(V12, {"room_version": "12"}, room_id=f"!{'a' * 43}"), {}) == "1.2"


@pytest.mark.invariant("SEC-AUTH-1")
def test_sec_auth_1_additional_creators_are_user_ids_from_version_12() -> None:
    for creators in ([], [BOB], [BOB, BOB, "@Old User:test"]):
        event = create_event(V12, {"room_version": "12", "additional_creators": creators})
        assert refusing_rule(V12, event, {}) is None
    for malformed in (None, BOB, {BOB: 1}, [1], [BOB, "bob"], ["@bob"], ["@bob:"], ["@bob:te st"], [[BOB]]):
        event = create_event(V12, {"room_version": "12", "additional_creators": malformed})
        assert refusing_rule(V12, event, {}) == "1.4"
        event = create_event(V11, {"room_version": "11", "additional_creators": malformed})
        assert refusing_rule(V11, event, {}) is None


def test_before_version_11_the_content_names_the_creator() -> None:
    version = replace(V11, creator_in_content=True)

    assert refusing_rule(version, create_event(version, {"room_version": "11"}), {}) == "1.4"
    assert refusing_rule(version, create_event(version, {"room_version": "11", "creator": ALICE}), {}) is None


@pytest.mark.parametrize(("version", "absent", "other"), [(V11, "2.4", "2.5"), (V12, "2", "2")])
@pytest.mark.invariant("SEC-AUTH-1")
def test_sec_auth_1_an_event_needs_the_create_event_of_its_room(
    version: RoomVersion, absent: str, other: str
) -> None:
    room, other_room = Room.with_members(version), Room(version)
    event = room.event(message(BOB))

    assert refusing_rule(version, event, {**room.state, room.create.key: other_room.create}) == other
    del room.state[room.create.key]
    assert refusing_rule(version, event, room.state) == absent


@pytest.mark.parametrize(("version", "rule"), [(V11, "3"), (V12, "4")])
@pytest.mark.invariant("SEC-AUTH-1")
def test_sec_auth_1_an_unfederated_room_is_for_users_of_the_creators_server(
    version: RoomVersion, rule: str
) -> None:
    room = Room.with_members(version, **{"m.federate": False})
    room.put(member(DAVE, "join"))

    assert refusing_rule(version, room.event(message(DAVE)), room.state) == rule
    assert refusing_rule(version, room.event(member(LEO, "join")), room.state) == rule
    assert refusing_rule(version, room.event(message(BOB)), room.state) is None
    assert refusing_rule(version, room.event(member(LEO, "invite", BOB)), room.state) is None


@VERSIONS
@pytest.mark.parametrize("federate", [True, None, 0, "", "false", [], {}])
def test_only_false_closes_a_room_to_other_servers(version: RoomVersion, federate: object) -> None:
    room = Room.with_members(version, **{"m.federate": federate})
    room.put(member(DAVE, "join"))

    assert refusing_rule(version, room.event(message(DAVE)), room.state) is None
