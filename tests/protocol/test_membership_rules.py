"""Rule 4 of version 11, rule 5 of version 12: m.room.member."""

from __future__ import annotations

import pytest

from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.rooms import (
    ALICE,
    BOB,
    DAVE,
    EVE,
    IVY,
    KIM,
    LEO,
    MAX,
    MIA,
    V11,
    V12,
    ZOE,
    Draft,
    Room,
    join_rules,
    member,
    power_levels,
)
from tests.protocol.rule_cases import Case, in_each_version, outcome, refusing_rule

JOINS = [
    Case(
        "a member event without state_key",
        Draft("m.room.member", DAVE, None, {"membership": "join"}),
        "4.1",
        "5.1",
    ),
    Case("a member event without membership", Draft("m.room.member", DAVE, DAVE, {}), "4.1", "5.1"),
    Case(
        "an authoriser that is a number",
        member(DAVE, "join", join_authorised_via_users_server=4),
        "4.2.1",
        "5.2.1",
    ),
    Case(
        "an authoriser that is null",
        member(DAVE, "join", join_authorised_via_users_server=None),
        "4.2.1",
        "5.2.1",
    ),
    Case(
        "an authoriser without a server",
        member(BOB, "leave", join_authorised_via_users_server="@zoe"),
        "4.2.1",
        "5.2.1",
    ),
    Case("joining for another", member(DAVE, "join", BOB), "4.3.2", "5.3.2"),
    Case("joining for the creator", member(ALICE, "join", BOB), "4.3.2", "5.3.2"),
    Case("joining when banned", member(EVE, "join"), "4.3.3", "5.3.3"),
    Case("joining a public room", member(DAVE, "join")),
    Case("joining a public room again", member(LEO, "join")),
    Case("changing a profile", member(BOB, "join", displayname="Bob"), state=(join_rules("invite"),)),
    Case("a displayname that is no string", member(BOB, "join", displayname=[1], avatar_url={}, reason=2)),
    Case("joining by invitation", member(IVY, "join"), state=(join_rules("invite"),)),
    Case("joining uninvited", member(DAVE, "join"), "4.3.7", "5.3.7", state=(join_rules("invite"),)),
    Case("joining after a knock", member(KIM, "join"), "4.3.7", "5.3.7", state=(join_rules("knock"),)),
    Case("joining by invitation where one may knock", member(IVY, "join"), state=(join_rules("knock"),)),
    Case("joining a private room", member(IVY, "join"), "4.3.7", "5.3.7", state=(join_rules("private"),)),
    Case("joining under an unknown rule", member(BOB, "join"), "4.3.7", "5.3.7", state=(join_rules("odd"),)),
    Case(
        "joining under a list of rules",
        member(BOB, "join"),
        "4.3.7",
        "5.3.7",
        state=(join_rules(["public"]),),
    ),
    Case("joining under the rule null", member(IVY, "join"), "4.3.7", "5.3.7", state=(join_rules(None),)),
    Case(
        "joining where the join rules say nothing",
        member(DAVE, "join"),
        "4.3.7",
        "5.3.7",
        state=(Draft("m.room.join_rules", ZOE, "", {}),),
    ),
    *(
        case
        for rule in ("restricted", "knock_restricted")
        for case in (
            Case(f"{rule}: by invitation", member(IVY, "join"), state=(join_rules(rule),)),
            Case(f"{rule}: already joined", member(BOB, "join"), state=(join_rules(rule),)),
            Case(
                f"{rule}: unauthorised", member(DAVE, "join"), "4.3.5.2", "5.3.5.2", state=(join_rules(rule),)
            ),
            Case(
                f"{rule}: authorised by an outsider",
                member(DAVE, "join", join_authorised_via_users_server=LEO),
                "4.3.5.2",
                "5.3.5.2",
                state=(join_rules(rule),),
            ),
            Case(
                f"{rule}: authorised",
                member(DAVE, "join", join_authorised_via_users_server=BOB),
                state=(join_rules(rule),),
            ),
            Case(
                f"{rule}: authorised by one who may not invite",
                member(DAVE, "join", join_authorised_via_users_server=BOB),
                "4.3.5.2",
                "5.3.5.2",
                state=(join_rules(rule), power_levels(invite=1)),
            ),
            Case(
                f"{rule}: authorised by the creator",
                member(DAVE, "join", join_authorised_via_users_server=ALICE),
                "4.3.5.2",
                None,
                state=(join_rules(rule), power_levels(invite=1)),
            ),
            Case(
                f"{rule}: banned",
                member(EVE, "join", join_authorised_via_users_server=BOB),
                "4.3.3",
                "5.3.3",
                state=(join_rules(rule),),
            ),
        )
    ),
    Case(
        "restricted with conditions of the wrong types",
        member(DAVE, "join", join_authorised_via_users_server=BOB),
        state=(Draft("m.room.join_rules", ZOE, "", {"join_rule": "restricted", "allow": 3}),),
    ),
]

INVITES = [
    Case("inviting by one who left", member(DAVE, "invite", LEO), "4.4.2", "5.4.2"),
    Case("inviting by one who is invited", member(DAVE, "invite", IVY), "4.4.2", "5.4.2"),
    Case("inviting a member", member(BOB, "invite", MIA), "4.4.3", "5.4.3"),
    Case("inviting the banned", member(EVE, "invite", ZOE), "4.4.3", "5.4.3"),
    Case("inviting someone new", member(DAVE, "invite", BOB)),
    Case("inviting someone who left", member(LEO, "invite", BOB)),
    Case("inviting again", member(IVY, "invite", BOB)),
    Case("inviting one who knocked", member(KIM, "invite", BOB)),
    Case(
        "inviting without the level",
        member(DAVE, "invite", MIA),
        "4.4.5",
        "5.4.5",
        (power_levels(invite=51),),
    ),
    Case("inviting with the level", member(DAVE, "invite", MIA), state=(power_levels(invite=50),)),
]

LEAVES = [
    Case("leaving", member(BOB, "leave")),
    Case("rejecting an invitation", member(IVY, "leave")),
    Case("withdrawing a knock", member(KIM, "leave")),
    Case("leaving twice", member(LEO, "leave"), "4.5.1", "5.5.1"),
    Case("leaving without having been there", member(DAVE, "leave"), "4.5.1", "5.5.1"),
    Case("leaving when banned", member(EVE, "leave"), "4.5.1", "5.5.1"),
    Case("removing by one who is not joined", member(BOB, "leave", LEO), "4.5.2", "5.5.2"),
    Case(
        "unbanning without the ban level",
        member(EVE, "leave", MIA),
        "4.5.3",
        "5.5.3",
        (power_levels(ban=51),),
    ),
    Case(
        "unbanning without the kick level",
        member(EVE, "leave", MIA),
        "4.5.5",
        "5.5.5",
        (power_levels(kick=51),),
    ),
    Case("unbanning with both levels", member(EVE, "leave", MIA)),
    Case(
        "unbanning an equal",
        member(EVE, "leave", MIA),
        "4.5.5",
        "5.5.5",
        (power_levels(users={MIA: 50, EVE: 50}),),
    ),
    Case("removing with the level", member(BOB, "leave", MIA)),
    Case("removing without the level", member(MAX, "leave", BOB), "4.5.5", "5.5.5"),
    Case("removing an equal", member(MAX, "leave", MIA), "4.5.5", "5.5.5"),
    Case("removing a superior", member(ZOE, "leave", MIA), "4.5.5", "5.5.5"),
    Case("removing the creator", member(ALICE, "leave", ZOE), None, "5.5.5"),
    Case("withdrawing an invitation", member(IVY, "leave", MIA)),
]

BANS = [
    Case("banning by one who is not joined", member(BOB, "ban", LEO), "4.6.1", "5.6.1"),
    Case("banning with the level", member(BOB, "ban", MIA)),
    Case("banning one who was never there", member(DAVE, "ban", MIA)),
    Case("banning without the level", member(DAVE, "ban", BOB), "4.6.3", "5.6.3"),
    Case("banning an equal", member(MAX, "ban", MIA), "4.6.3", "5.6.3"),
    Case("banning oneself", member(ZOE, "ban"), "4.6.3", "5.6.3"),
    Case("banning the creator", member(ALICE, "ban", ZOE), None, "5.6.3"),
    Case("banning again", member(EVE, "ban", MIA)),
]

KNOCKS = [
    *(
        Case(f"knocking under {rule}", member(DAVE, "knock"), "4.7.1", "5.7.1", (join_rules(rule),))
        for rule in ("public", "invite", "restricted", "private", ["knock"])
    ),
    *(
        case
        for rule in ("knock", "knock_restricted")
        for case in (
            Case(f"{rule}: a stranger", member(DAVE, "knock"), state=(join_rules(rule),)),
            Case(f"{rule}: one who left", member(LEO, "knock"), state=(join_rules(rule),)),
            Case(f"{rule}: again", member(KIM, "knock"), state=(join_rules(rule),)),
            Case(f"{rule}: for another", member(DAVE, "knock", BOB), "4.7.2", "5.7.2", (join_rules(rule),)),
            Case(f"{rule}: banned", member(EVE, "knock"), "4.7.4", "5.7.4", (join_rules(rule),)),
            Case(f"{rule}: invited", member(IVY, "knock"), "4.7.4", "5.7.4", (join_rules(rule),)),
            Case(f"{rule}: joined", member(BOB, "knock"), "4.7.4", "5.7.4", (join_rules(rule),)),
        )
    ),
]

UNKNOWN = [
    Case(f"the membership {membership!r}", member(BOB, membership), "4.8", "5.8")
    for membership in ("odd", "", None, ["join"], {"join": True}, 1, False)
]


@pytest.mark.invariant("SEC-AUTH-1")
@in_each_version([*JOINS, *INVITES, *LEAVES, *BANS, *KNOCKS, *UNKNOWN])
def test_sec_auth_1_a_change_of_membership_is_allowed_or_refused_by_its_rule(
    version: RoomVersion, case: Case, rule: str | None
) -> None:
    assert outcome(version, case) == rule


@pytest.mark.parametrize("version", [V11, V12])
def test_the_creator_is_the_first_to_join(version: RoomVersion) -> None:
    room = Room(version)
    after_create = (room.create.event_id,)

    assert (
        refusing_rule(version, room.event(member(ALICE, "join"), prev_events=after_create), room.state)
        is None
    )


@pytest.mark.parametrize(("version", "rule"), [(V11, "4.3.7"), (V12, "5.3.7")])
def test_nobody_but_the_creator_joins_first(version: RoomVersion, rule: str) -> None:
    room = Room(version, additional_creators=[ZOE])
    after_create = (room.create.event_id,)
    later = (room.create.event_id, EventId("$another"))

    for user_id, prev_events in ((BOB, after_create), (ZOE, after_create), (ALICE, later), (ALICE, ())):
        event = room.event(member(user_id, "join"), prev_events=prev_events)
        assert refusing_rule(version, event, room.state) == rule


@pytest.mark.parametrize("membership", ["ban", "leave"])
def test_creators_cannot_remove_each_other(membership: str) -> None:
    room = Room.with_members(V12, additional_creators=[ZOE])
    room.put(power_levels(users={}))

    rule = {"ban": "5.6.3", "leave": "5.5.5"}[membership]
    assert refusing_rule(V12, room.event(member(ZOE, membership, ALICE)), room.state) == rule
    assert refusing_rule(V12, room.event(member(ALICE, membership, ZOE)), room.state) == rule


def test_additional_creators_mean_nothing_in_version_11() -> None:
    room = Room.with_members(V11, additional_creators=[BOB])

    assert refusing_rule(V11, room.event(member(DAVE, "ban", BOB)), room.state) == "4.6.3"
