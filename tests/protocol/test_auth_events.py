"""Which auth events an event needs, and which it may name."""

from __future__ import annotations

import pytest

from homeserver.protocol.auth_events import auth_state_keys, select_auth_events
from homeserver.protocol.auth_rules import (
    check_against_auth_events,
    check_auth_events,
    why_refused_by_auth_events,
)
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.rooms import BOB, DAVE, MIA, V11, V12, VERSIONS, ZOE, Draft, Room, member, message

CREATE = ("m.room.create", "")
POWER_LEVELS = ("m.room.power_levels", "")
JOIN_RULES = ("m.room.join_rules", "")


def of(user_id: str) -> StateKey:
    return "m.room.member", user_id


def keys_of(version: RoomVersion, draft: Draft) -> list[StateKey]:
    return auth_state_keys(version, draft.type, draft.sender, draft.state_key, draft.content)


@VERSIONS
@pytest.mark.parametrize(
    ("draft", "further_keys"),
    [
        (message(BOB), []),
        (Draft("m.room.topic", BOB, ""), []),
        (Draft("m.room.member", BOB, None, {"membership": "join"}), []),
        (member(BOB, "join"), [JOIN_RULES]),
        (member(DAVE, "invite", BOB), [of(DAVE), JOIN_RULES]),
        (member(BOB, "knock"), [JOIN_RULES]),
        (member(BOB, "leave"), []),
        (member(DAVE, "leave", BOB), [of(DAVE)]),
        (member(DAVE, "ban", BOB), [of(DAVE)]),
        (member(DAVE, ["join"], BOB), [of(DAVE)]),
        (
            member(DAVE, "invite", BOB, third_party_invite={"signed": {"token": "t"}}),
            [of(DAVE), JOIN_RULES, ("m.room.third_party_invite", "t")],
        ),
        (member(DAVE, "invite", BOB, third_party_invite={"signed": {"token": 1}}), [of(DAVE), JOIN_RULES]),
        (member(DAVE, "invite", BOB, third_party_invite={"signed": []}), [of(DAVE), JOIN_RULES]),
        (member(DAVE, "invite", BOB, third_party_invite="t"), [of(DAVE), JOIN_RULES]),
        (member(BOB, "join", third_party_invite={"signed": {"token": "t"}}), [JOIN_RULES]),
        (member(BOB, "join", join_authorised_via_users_server=ZOE), [JOIN_RULES, of(ZOE)]),
        (member(BOB, "join", join_authorised_via_users_server=BOB), [JOIN_RULES]),
        (member(BOB, "join", join_authorised_via_users_server=[ZOE]), [JOIN_RULES]),
        (member(DAVE, "invite", BOB, join_authorised_via_users_server=ZOE), [of(DAVE), JOIN_RULES]),
    ],
)
def test_the_keys_are_those_that_the_selection_names(
    version: RoomVersion, draft: Draft, further_keys: list[StateKey]
) -> None:
    if not version.restricted_join_rules:  # then an authoriser is nobody
        further_keys = [key for key in further_keys if key != of(ZOE)]
    assert keys_of(version, draft) == [CREATE, POWER_LEVELS, of(BOB), *further_keys]


@VERSIONS
def test_a_create_event_reads_no_state(version: RoomVersion) -> None:
    assert keys_of(version, Draft("m.room.create", BOB, "")) == []


def test_the_create_event_is_selected_up_to_version_11() -> None:
    for version, has_create in ((V11, True), (V12, False)):
        room = Room.with_members(version)
        selected = select_auth_events(version, "m.room.message", BOB, None, {}, room.state)
        create = [room.create.event_id] if has_create else []
        assert selected == (*create, room.state[POWER_LEVELS].event_id, room.state[of(BOB)].event_id)


@VERSIONS
def test_what_is_not_in_the_state_is_not_selected(version: RoomVersion) -> None:
    room = Room(version)
    room.put(member(BOB, "join"))
    selected = select_auth_events(version, "m.room.member", BOB, DAVE, {"membership": "invite"}, room.state)

    assert selected[-1] == room.state[of(BOB)].event_id
    assert len(selected) == (1 if version is V12 else 2)


def refusing_rule(
    room: Room, draft: Draft, auth_events: list[Pdu], rejected: frozenset[EventId] = frozenset()
) -> str | None:
    try:
        check_auth_events(room.version, room.event(draft), auth_events, rejected)
    except NotAllowed as refusal:
        return refusal.rule
    return None


def selected_events(room: Room, draft: Draft) -> list[Pdu]:
    ids = select_auth_events(
        room.version, draft.type, draft.sender, draft.state_key, draft.content, room.state
    )
    by_id = {event.event_id: event for event in room.state.values()}
    return [by_id[event_id] for event_id in ids]


@VERSIONS
@pytest.mark.parametrize("draft", [message(BOB), member(DAVE, "invite", BOB), member(DAVE, "join")])
@pytest.mark.invariant("SEC-AUTH-2")
def test_sec_auth_2_the_selected_events_may_be_named(version: RoomVersion, draft: Draft) -> None:
    room = Room.with_members(version)

    assert refusing_rule(room, draft, selected_events(room, draft)) is None


@VERSIONS
@pytest.mark.invariant("SEC-AUTH-2")
def test_sec_auth_2_a_missing_entry_leaves_the_decision_to_the_rules(version: RoomVersion) -> None:
    room = Room.with_members(version)
    needed = [] if version is V12 else [room.create]

    assert refusing_rule(room, message(BOB), needed) is None


@pytest.mark.parametrize(("version", "rule"), [(V11, "2.1"), (V12, "3.1")])
@pytest.mark.invariant("SEC-AUTH-2")
def test_sec_auth_2_no_two_entries_have_one_key(version: RoomVersion, rule: str) -> None:
    room = Room.with_members(version)
    auth_events = selected_events(room, message(BOB))

    assert refusing_rule(room, message(BOB), [*auth_events, auth_events[-1]]) == rule
    assert refusing_rule(room, message(BOB), [*auth_events, room.event(member(BOB, "leave"))]) == rule


@pytest.mark.parametrize(("version", "rule"), [(V11, "2.2"), (V12, "3.2")])
@pytest.mark.invariant("SEC-AUTH-2")
def test_sec_auth_2_no_entry_is_outside_the_selection(version: RoomVersion, rule: str) -> None:
    room = Room.with_members(version)
    auth_events = selected_events(room, message(BOB))

    for other in (room.state[of(MIA)], room.state[JOIN_RULES], room.event(message(BOB))):
        assert refusing_rule(room, message(BOB), [*auth_events, other]) == rule
    without_state_key = room.event(Draft("m.room.power_levels", ZOE, None))
    assert refusing_rule(room, message(BOB), [without_state_key]) == rule


@VERSIONS
@pytest.mark.invariant("SEC-AUTH-2")
def test_sec_auth_2_a_create_event_is_not_judged_by_what_it_names(version: RoomVersion) -> None:
    room, other = Room.with_members(version), Room.with_members(version)
    named = [room.state[of(BOB)], room.state[of(BOB)], other.state[of(BOB)], room.event(message(BOB))]
    rejected = {event.event_id for event in named}

    rule = check_against_auth_events(version, room.create, named, rejected, None)
    assert rule == ("1.4" if version is V11 else "1.5")


@pytest.mark.parametrize(("version", "rule"), [(V11, "2.3"), (V12, "3.3")])
@pytest.mark.invariant("SEC-AUTH-2")
def test_sec_auth_2_no_entry_was_rejected(version: RoomVersion, rule: str) -> None:
    room = Room.with_members(version)
    auth_events = selected_events(room, message(BOB))

    for auth_event in auth_events:
        assert refusing_rule(room, message(BOB), auth_events, frozenset({auth_event.event_id})) == rule


@pytest.mark.invariant("SEC-AUTH-2")
def test_sec_auth_2_the_create_event_is_among_them_up_to_version_11() -> None:
    for version, without, with_create in ((V11, "2.4", None), (V12, None, "3.2")):
        room = Room.with_members(version)
        others = [room.state[POWER_LEVELS], room.state[of(BOB)]]
        assert refusing_rule(room, message(BOB), others) == without
        assert refusing_rule(room, message(BOB), [room.create, *others]) == with_create


@pytest.mark.parametrize(("version", "rule"), [(V11, "2.5"), (V12, "3.4")])
@pytest.mark.invariant("SEC-AUTH-2")
def test_sec_auth_2_all_entries_are_of_the_same_room(version: RoomVersion, rule: str) -> None:
    room, other = Room.with_members(version), Room.with_members(version)
    auth_events = selected_events(room, message(BOB))
    auth_events[-1] = other.state[of(BOB)]

    assert refusing_rule(room, message(BOB), auth_events) == rule


@pytest.mark.invariant("SEC-AUTH-2")
def test_sec_auth_2_in_version_12_the_room_id_is_looked_at_before_the_list() -> None:
    room, other = Room.with_members(V12), Room.with_members(V12)
    event, twice = room.event(message(BOB)), [other.state[of(BOB)]] * 2

    for create, rule in ((None, "2"), (other.create, "2"), (room.create, "3.1")):
        why = why_refused_by_auth_events(V12, event, twice, (), create)
        assert why is not None and why.endswith(f"(rule {rule})")
