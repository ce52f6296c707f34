"""Which rule allows an event, by its number on the page of each room version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest

from homeserver.protocol.auth_rules import check_against_auth_events, check_auth
from homeserver.protocol.events import Pdu
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from tests.protocol.rooms import (
    ALICE,
    BOB,
    DAVE,
    EVE,
    IVY,
    MIA,
    VERSIONS,
    ZOE,
    Draft,
    Room,
    create_content_of,
    join_rules,
    make_event,
    member,
    message,
    power_levels,
)
from tests.protocol.test_third_party_invites import invite, issued, signed

PAGES: Final = ("1 2", "3 4 5", "6", "7", "8 9", "10", "11", "12")
"""The versions whose pages number the rules alike."""


@dataclass(frozen=True)
class Allowed:
    """An event that is allowed in the room of `Room.with_members`, whose state `state` changes.

    `rules`: the number of the rule for each of PAGES; `-` where the rules of a version do not have it.
    """

    name: str
    event: Draft
    rules: str
    state: tuple[Draft, ...] = ()


INVITE_ONLY = (join_rules("invite"),)
KNOCK = (join_rules("knock"),)
RESTRICTED = (join_rules("restricted"),)
KNOCK_RESTRICTED = (join_rules("knock_restricted"),)
AUTHORISED = member(DAVE, "join", join_authorised_via_users_server=BOB)

CASES = [
    Allowed("joining a public room", member(DAVE, "join"), "5.2.5 5.2.5 4.2.5 4.2.5 4.3.6 4.3.6 4.3.6 5.3.6"),
    Allowed(
        "joining by invitation",
        member(IVY, "join"),
        "5.2.4 5.2.4 4.2.4 4.2.4 4.3.4 4.3.4 4.3.4 5.3.4",
        INVITE_ONLY,
    ),
    Allowed("changing a profile", member(BOB, "join"), "- - - 4.2.4 4.3.4 4.3.4 4.3.4 5.3.4", KNOCK),
    Allowed(
        "restricted: by invitation",
        member(IVY, "join"),
        "- - - - 4.3.5.1 4.3.5.1 4.3.5.1 5.3.5.1",
        RESTRICTED,
    ),
    Allowed("restricted: authorised", AUTHORISED, "- - - - 4.3.5.3 4.3.5.3 4.3.5.3 5.3.5.3", RESTRICTED),
    Allowed("knock_restricted", AUTHORISED, "- - - - - 4.3.5.3 4.3.5.3 5.3.5.3", KNOCK_RESTRICTED),
    Allowed(
        "taking up a third-party invite",
        invite(signed=signed()),
        "5.3.1.7 5.3.1.7 4.3.1.7 4.3.1.7 4.4.1.7 4.4.1.7 4.4.1.7 5.4.1.7",
        (issued(),),
    ),
    Allowed("inviting", member(DAVE, "invite", BOB), "5.3.4 5.3.4 4.3.4 4.3.4 4.4.4 4.4.4 4.4.4 5.4.4"),
    Allowed("leaving", member(BOB, "leave"), "5.4.1 5.4.1 4.4.1 4.4.1 4.5.1 4.5.1 4.5.1 5.5.1"),
    Allowed("removing", member(BOB, "leave", MIA), "5.4.4 5.4.4 4.4.4 4.4.4 4.5.4 4.5.4 4.5.4 5.5.4"),
    Allowed("unbanning", member(EVE, "leave", MIA), "5.4.4 5.4.4 4.4.4 4.4.4 4.5.4 4.5.4 4.5.4 5.5.4"),
    Allowed("banning", member(BOB, "ban", MIA), "5.5.2 5.5.2 4.5.2 4.5.2 4.6.2 4.6.2 4.6.2 5.6.2"),
    Allowed("knocking", member(DAVE, "knock"), "- - - 4.6.3 4.7.3 4.7.3 4.7.3 5.7.3", KNOCK),
    Allowed("knocking, or else", member(DAVE, "knock"), "- - - - - 4.7.3 4.7.3 5.7.3", KNOCK_RESTRICTED),
    Allowed(
        "a third-party invite",
        Draft("m.room.third_party_invite", BOB, "t"),
        "7.1 7.1 6.1 6.1 6.1 6.1 6.1 7.1",
    ),
    Allowed("power levels", power_levels(), "10.8 10.8 9.8 9.8 9.8 9.10 9.10 10.11"),
    Allowed("a message", message(BOB), "12 11 10 10 10 10 10 11"),
    Allowed("a state event", Draft("m.room.topic", MIA, "", {"topic": "tea"}), "12 11 10 10 10 10 10 11"),
    Allowed("redacting with the level", Draft("m.room.redaction", MIA), "11.1 11 10 10 10 10 10 11"),
    Allowed("aliases", Draft("m.room.aliases", DAVE, "elsewhere"), "4.3 4.3 - - - - - -"),
]


def allowing_rule(room: Room, event: Pdu) -> str:
    return check_auth(room.version, event, room.state)


@pytest.mark.parametrize(
    ("version", "case", "rule"),
    [
        pytest.param(ROOM_VERSIONS[version], case, rule, id=f"{case.name}, version {version}")
        for case in CASES
        for versions, rule in zip(PAGES, case.rules.split(), strict=True)
        for version in versions.split()
        if rule != "-"
    ],
)
def test_the_rule_that_allows_an_event_is_told(version: RoomVersion, case: Allowed, rule: str) -> None:
    room = Room.with_members(version)
    room.put(*case.state)

    assert allowing_rule(room, room.event(case.event)) == rule


@VERSIONS
def test_a_create_event_is_allowed_where_no_rule_refuses_it(version: RoomVersion) -> None:
    event = make_event(version, "m.room.create", ALICE, "", create_content_of(version), prev_events=())
    rule = "1.4" if version.version == "11" else "1.5"

    assert check_auth(version, event, {}) == rule
    assert check_against_auth_events(version, event, [], (), None) == rule


@VERSIONS
def test_the_first_join_and_the_first_power_levels_have_rules_of_their_own(version: RoomVersion) -> None:
    room = Room(version)
    join = room.event(member(ALICE, "join"), prev_events=(room.create.event_id,))
    first_join = {"6": "4.2.1", "7": "4.2.1", "12": "5.3.1"}
    first_levels = {"10": "9.4", "11": "9.4", "12": "10.5"}
    old = int(version.version) < 6

    assert allowing_rule(room, join) == first_join.get(version.version, "5.2.1" if old else "4.3.1")
    room.put(member(ALICE, "join"))
    levels = room.event(power_levels(ALICE, users={ZOE: 100}))
    assert allowing_rule(room, levels) == first_levels.get(version.version, "10.2" if old else "9.2")


@pytest.mark.parametrize("version", ["1", "2"])
def test_up_to_version_2_a_redaction_on_its_own_server_is_allowed_by_its_own_rule(version: str) -> None:
    room = Room.with_members(ROOM_VERSIONS[version])
    redaction = make_event(
        room.version,
        "m.room.redaction",
        BOB,
        room_id=room.create.room_id,
        event_id="$redaction:test",
    )
    redaction.json["redacts"] = "$target:test"

    assert allowing_rule(room, redaction) == "11.2"
