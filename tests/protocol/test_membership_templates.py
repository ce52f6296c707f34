"""What we sign on the word of another server: membership events of our own making, and nothing else."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.protocol.auth_events import AUTHORISER
from homeserver.protocol.errors import InvalidEvent, ProtocolError, UnknownRoomVersion
from homeserver.protocol.events import MAX_AUTH_EVENTS, MAX_PREV_EVENTS, Pdu, parse_pdu
from homeserver.protocol.identifiers import RoomId, ServerName, UserId
from homeserver.protocol.membership_templates import build_from_template, version_of_template
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.protocol.strict_json import JsonObject
from tests.protocol.json_values import any_values
from tests.protocol.rooms import V11, V12

US: Final = ServerName("our.test")
RESIDENT: Final = ServerName("resident.test")
ALICE: Final = UserId("@alice:our.test")
ROOMS: Final = {V11: RoomId("!tea:resident.test"), V12: RoomId("!" + "r" * 43)}
TS: Final = 1_700_000_000_000
OURS: Final[JsonObject] = {"displayname": "Alice", "reason": "tea", AUTHORISER: "@mallory:our.test"}
EVENT_TYPES: Final = (
    "m.room.aliases", "m.room.avatar", "m.room.canonical_alias", "m.room.create", "m.room.encrypted",
    "m.room.encryption", "m.room.guest_access", "m.room.history_visibility", "m.room.join_rules",
    "m.room.member", "m.room.message", "m.room.name", "m.room.pinned_events", "m.room.policy",
    "m.room.power_levels", "m.room.redaction", "m.room.server_acl", "m.room.third_party_invite",
    "m.room.tombstone", "m.room.topic", "m.space.child", "m.space.parent", "m.reaction", "m.sticker",
    "m.policy.rule.user", "m.call.invite", "org.example.tea", "",
)  # fmt: skip

versions = st.sampled_from([V11, V12])
memberships = st.sampled_from(["join", "leave"])


def good(version: RoomVersion, membership: str = "join", **changes: Any) -> JsonObject:
    """A template as it should be, but for some changes."""
    return {
        "type": "m.room.member",
        "room_id": ROOMS[version],
        "sender": ALICE,
        "state_key": ALICE,
        "content": {"membership": membership},
        "prev_events": ["$" + "p" * 43],
        "auth_events": ["$" + "a" * 43, "$" + "b" * 43],
        "depth": 7,
        "origin_server_ts": 5,
        **changes,
    }


def build(version: RoomVersion, template: object, membership: Any = "join") -> Pdu:
    return build_from_template(
        version,
        template,
        server_name=RESIDENT,
        room_id=ROOMS[version],
        user_id=ALICE,
        membership=membership,
        content=OURS,
        origin_server_ts=TS,
    )


def check_ours(version: RoomVersion, pdu: Pdu, template: JsonObject, membership: str) -> None:
    """Whatever the template was: what it became is the membership that the user asked for."""
    event = pdu.json
    assert set(event) == {
        "type", "room_id", "sender", "state_key", "content", "prev_events", "auth_events", "depth",
        "origin_server_ts", "hashes",
    }  # fmt: skip
    assert (event["type"], event["room_id"]) == ("m.room.member", ROOMS[version])
    assert (event["sender"], event["state_key"], event["origin_server_ts"]) == (ALICE, ALICE, TS)
    authoriser = event["content"].pop(AUTHORISER, None)
    assert event["content"] == {"displayname": "Alice", "reason": "tea", "membership": membership}
    if authoriser is not None:
        assert membership == "join"
        assert authoriser == template["content"][AUTHORISER]
        assert authoriser.endswith(f":{RESIDENT}")


@pytest.mark.invariant("SEC-SIGN-1")
@pytest.mark.parametrize("event_type", EVENT_TYPES)
@settings(max_examples=30)
@given(data=st.data())
def test_sec_sign_1_no_template_of_any_event_type_makes_us_sign_anything_else(
    event_type: str, data: st.DataObject
) -> None:
    version, membership = data.draw(versions), data.draw(memberships)
    odd = any_values() | st.sampled_from([ALICE, "@bob:our.test", ROOMS[V11], ROOMS[V12], "join", "leave"])
    keys = st.sampled_from(
        [*good(version), "event_id", "redacts", "hashes", "signatures", "origin", "unsigned"]
    )
    changes = data.draw(st.dictionaries(keys, odd, max_size=4))
    content = data.draw(
        st.fixed_dictionaries(
            {},
            optional={"membership": memberships | odd, AUTHORISER: odd | st.just(f"@x:{RESIDENT}"), "x": odd},
        )
    )
    template = {**good(version), "type": event_type, "content": content, **changes}
    try:
        pdu = build(version, template, membership)
    except ProtocolError:
        return
    assert event_type == "m.room.member" or changes.get("type") == "m.room.member"
    check_ours(version, pdu, template, membership)


@pytest.mark.invariant("SEC-SIGN-1")
@pytest.mark.parametrize("version", [V11, V12], ids=["11", "12"])
@pytest.mark.parametrize("membership", ["join", "leave"])
def test_sec_sign_1_a_template_says_where_an_event_goes(version: RoomVersion, membership: str) -> None:
    template = good(version, membership, origin="evil.test", unsigned={"age": 1}, redacts="$x", hashes={})
    template["content"].update({"displayname": "Mallory", "third_party_invite": {}})
    pdu = build(version, template, membership)

    assert (pdu.prev_events, pdu.auth_events) == (("$" + "p" * 43,), ("$" + "a" * 43, "$" + "b" * 43))
    assert pdu.depth == 7
    assert parse_pdu(version, pdu.json, event_id=pdu.event_id).json is pdu.json
    check_ours(version, pdu, template, membership)


@pytest.mark.invariant("SEC-SIGN-1")
@pytest.mark.parametrize(
    ("membership", "authoriser", "taken"),
    [
        ("join", f"@zoe:{RESIDENT}", True),
        ("leave", f"@zoe:{RESIDENT}", False),
        ("join", "@zoe:third.test", None),
        ("join", f"@zoe:{US}", None),
        ("join", RESIDENT, None),
        ("join", [f"@zoe:{RESIDENT}"], None),
        ("join", None, None),
    ],
)
def test_sec_sign_1_only_a_user_of_the_resident_server_lets_us_in(
    membership: str, authoriser: Any, taken: bool | None
) -> None:
    template = good(V12, content={"membership": membership, AUTHORISER: authoriser})
    if taken is None:
        with pytest.raises(InvalidEvent):
            build(V12, template, membership)
    else:
        assert build(V12, template, membership).content.get(AUTHORISER) == (authoriser if taken else None)


@pytest.mark.parametrize(
    "changes",
    [
        {"prev_events": []},
        {"prev_events": ["p"]},
        {"prev_events": [["$p", {"sha256": "x"}]]},
        {"prev_events": {"$p": 1}},
        {"prev_events": [f"$p{number}" for number in range(MAX_PREV_EVENTS + 1)]},
        {"auth_events": None},
        {"auth_events": ["$" + "a" * 300]},
        {"auth_events": [f"$a{number}" for number in range(MAX_AUTH_EVENTS + 1)]},
        {"depth": -1},
        {"depth": True},
        {"depth": 2**53},
        {"depth": 1.0},
        {"depth": "7"},
        {"content": {"membership": "invite"}},
        {"content": {}},
        {"content": []},
        {"state_key": "@bob:our.test"},
        {"sender": "@bob:our.test"},
        {"room_id": "!other:resident.test"},
        {"room_id": None},
        {"type": "m.room.power_levels"},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_template_that_is_not_for_this_event_is_refused(changes: JsonObject) -> None:
    with pytest.raises(InvalidEvent):
        build(V11, good(V11, **changes))


@pytest.mark.parametrize("version", [None, 12, "13", "", ["12"]])
def test_a_version_that_we_do_not_speak_is_refused(version: Any) -> None:
    with pytest.raises(UnknownRoomVersion):
        version_of_template({"room_version": version})
    assert version_of_template({}) is ROOM_VERSIONS["1"]
    assert version_of_template({"room_version": "11"}) is V11
