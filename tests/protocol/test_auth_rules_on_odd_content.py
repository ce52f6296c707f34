"""The authorization rules judge content of any JSON type, and nothing but NotAllowed comes out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.protocol.auth_events import select_auth_events
from homeserver.protocol.auth_rules import check_auth, check_auth_events
from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from tests.protocol.rooms import ALICE, BOB, DAVE, MIA, V11, V12, ZOE, Draft, Room, member, power_levels
from tests.protocol.rule_cases import refusing_rule

VERSIONS = tuple(ROOM_VERSIONS.values())
PEOPLE = (ALICE, ZOE, MIA, BOB, DAVE)
MEMBERSHIPS = st.sampled_from(["join", "invite", "leave", "ban", "knock"])
JOIN_RULES = st.sampled_from(["public", "invite", "knock", "restricted", "knock_restricted"])

USER_IDS = st.sampled_from(PEOPLE)
KEYS = st.text(max_size=8) | USER_IDS | st.sampled_from(["signed", "token", "ed25519:0", "m.room.message"])
SCALARS = st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.text(max_size=8) | USER_IDS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
LEVELS = st.sampled_from([0, 50, 100, "50", " +100 "])


def keys_of_any_type(**usual: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects in which each key is missing, as usual, or anything."""
    return st.fixed_dictionaries({}, optional={key: values | JSON for key, values in usual.items()})


BASE64_KEYS = st.just("A" * 43)
SIGNATURES = st.dictionaries(KEYS, st.dictionaries(st.just("ed25519:0"), st.just("A" * 86) | JSON) | JSON)
SIGNED_INVITES = st.builds(
    lambda user_id, signatures: {"signed": {"mxid": user_id, "token": "token", "signatures": signatures}},
    st.just(DAVE) | USER_IDS,
    SIGNATURES | JSON,
) | keys_of_any_type(signed=keys_of_any_type(mxid=USER_IDS, token=st.just("token"), signatures=SIGNATURES))
CONTENTS = {
    "m.room.member": st.builds(lambda membership: {"membership": membership}, MEMBERSHIPS)
    | st.builds(lambda membership: {"membership": membership}, JSON)
    | st.builds(lambda invite: {"membership": "invite", "third_party_invite": invite}, SIGNED_INVITES | JSON)
    | st.builds(
        lambda authoriser: {"membership": "join", "join_authorised_via_users_server": authoriser},
        USER_IDS | JSON,
    ),
    "m.room.join_rules": keys_of_any_type(join_rule=JOIN_RULES, allow=st.just([])),
    "m.room.power_levels": keys_of_any_type(
        users=st.dictionaries(USER_IDS, LEVELS | SCALARS, max_size=3) | st.just({ZOE: 100}),
        events=st.dictionaries(KEYS, LEVELS, max_size=3),
        notifications=st.dictionaries(KEYS, LEVELS, max_size=3),
        **dict.fromkeys(
            ("users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"), LEVELS
        ),
    ),
    "m.room.third_party_invite": keys_of_any_type(
        public_key=BASE64_KEYS, public_keys=st.lists(keys_of_any_type(public_key=BASE64_KEYS))
    ),
    "m.room.message": st.just({}),
    "m.room.create": keys_of_any_type(
        **{"m.federate": st.booleans()}, creator=USER_IDS, additional_creators=st.lists(USER_IDS, max_size=2)
    ),
}


@st.composite
def rooms(draw: st.DrawFn) -> Room:
    """Rooms whose state holds what no server should have let pass."""
    version = draw(st.sampled_from(VERSIONS))
    room = Room(version, **draw(CONTENTS["m.room.create"]))
    for event_type in ("m.room.power_levels", "m.room.join_rules"):
        if draw(st.booleans()):
            room.put(Draft(event_type, ZOE, "", draw(CONTENTS[event_type])))
    joined = st.just({"membership": "join"})
    for user_id in PEOPLE:
        content = draw(joined | joined | CONTENTS["m.room.member"])
        room.put(Draft("m.room.member", user_id, user_id, content))
    room.put(Draft("m.room.third_party_invite", ZOE, "token", draw(CONTENTS["m.room.third_party_invite"])))
    return room


@st.composite
def events(draw: st.DrawFn, room: Room) -> Pdu:
    """Events of that room of all types that the rules know."""
    event_type = draw(st.sampled_from([*CONTENTS, *["m.room.member"] * 5, *["m.room.power_levels"] * 5]))
    state_key = draw(USER_IDS if event_type == "m.room.member" else st.sampled_from([None, "", *PEOPLE]))
    draft = Draft(event_type, draw(USER_IDS), state_key, draw(CONTENTS[event_type]))
    return room.event(
        draft, prev_events=draw(st.sampled_from([(), (room.create.event_id,), (EventId("$before"),)]))
    )


@settings(max_examples=300)
@given(st.data())
@pytest.mark.invariant("SEC-JSON-2")
def test_sec_json_2_content_of_any_type_is_allowed_or_refused(data: st.DataObject) -> None:
    room = data.draw(rooms())
    event = data.draw(events(room))

    rule_by_what_may_be_read = refusing_rule(room.version, event, room.state)
    try:
        check_auth(room.version, event, room.state)
    except NotAllowed as refusal:
        assert refusal.rule == rule_by_what_may_be_read  # noqa: PT017
    else:
        assert rule_by_what_may_be_read is None


@given(st.data())
@pytest.mark.invariant("SEC-JSON-2")
def test_sec_json_2_what_is_selected_for_content_of_any_type_may_be_named(data: st.DataObject) -> None:
    room = data.draw(rooms())
    event = data.draw(events(room))
    selected = select_auth_events(
        room.version, event.type, event.sender, event.state_key, event.content, room.state
    )
    by_id = {pdu.event_id: pdu for pdu in room.state.values()}

    check_auth_events(room.version, event, [by_id[event_id] for event_id in selected], ())


@given(SIGNED_INVITES, CONTENTS["m.room.third_party_invite"])
@pytest.mark.invariant("SEC-JSON-2")
def test_sec_json_2_keys_and_signatures_of_any_type_fit_nothing(
    third_party_invite: dict[str, Any], token_content: dict[str, Any]
) -> None:
    room = Room.with_members(V12)
    room.put(Draft("m.room.third_party_invite", ZOE, "token", token_content))
    invite = member(DAVE, "invite", ZOE, third_party_invite=third_party_invite)

    assert str(refusing_rule(V12, room.event(invite), room.state)).startswith("5.4.1.")


@pytest.mark.parametrize("version", [V11, V12])
@given(extra=st.dictionaries(st.sampled_from(["displayname", "avatar_url", "reason", "via"]), JSON))
def test_malformed_fields_that_no_rule_reads_do_not_matter(
    version: RoomVersion, extra: dict[str, Any]
) -> None:
    room = Room.with_members(version, predecessor=[], type=3, **extra)

    for draft in (
        member(DAVE, "join", **extra),
        power_levels(**extra),
        Draft("m.room.message", BOB, None, extra),
    ):
        assert refusing_rule(version, room.event(draft), room.state) is None
