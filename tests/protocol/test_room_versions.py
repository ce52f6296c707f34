"""What each room version changes from the one before it, as its page tells it."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

import pytest
from canonicaljson import encode_canonical_json

from homeserver.protocol.canonical_json import canonical_event, write_json
from homeserver.protocol.errors import BadSignature, InvalidEvent
from homeserver.protocol.event_hashes import (
    content_hash,
    decode_event_id,
    encode_event_id,
    event_id_of,
    reference_hash_text,
)
from homeserver.protocol.events import EventDraft, build_pdu, client_event, parse_pdu, redact_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId
from homeserver.protocol.power_levels import parse_level, redacts_others
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.protocol.signing import (
    SigningKey,
    VerifyKey,
    required_signers,
    sign_event,
    verify_event_signatures,
)
from homeserver.protocol.strict_json import JsonObject, parse_json_object
from homeserver.protocol.unpadded_base64 import encode_base64
from tests.protocol.rooms import BOB, DAVE, MIA, VERSIONS, ZOE, Draft, Room, join_rules, member, power_levels
from tests.protocol.rule_cases import refusing_rule

ALICE: Final = UserId("@alice:test")
SERVER: Final = ServerName("test")
KEY: Final = SigningKey.from_seed("1", bytes(range(32)))


def number(version: RoomVersion) -> int:
    return int(version.version)


def build(version: RoomVersion, draft: EventDraft, **arguments: Any) -> JsonObject:
    """A new event of alice, as another server gets it."""
    before = EventId("$before:test")
    values: dict[str, Any] = {
        "room_id": RoomId("!" + "r" * 42 + "A") if version.room_id_is_create_hash else RoomId("!tea:test"),
        "sender": ALICE,
        "prev_events": (before,),
        "auth_events": (before,),
        "depth": 7,
        "origin_server_ts": 1_700_000_000_000,
        "reference_hashes": {before: "hash"},
    }
    return sign_event(version, build_pdu(version, draft=draft, **{**values, **arguments}).json, SERVER, KEY)


# --- Event IDs and the format of events


@VERSIONS
def test_event_ids_are_chosen_then_hashes(version: RoomVersion) -> None:
    built = build(version, EventDraft("m.room.message", {"body": "tea"}))
    pdu = parse_pdu(version, built)

    assert ("event_id" in built) == (number(version) <= 2)
    if number(version) <= 2:
        assert built["event_id"] == pdu.event_id
        assert pdu.event_id.endswith(":test")
        assert built["prev_events"] == built["auth_events"] == [["$before:test", {"sha256": "hash"}]]
        return
    assert built["prev_events"] == ["$before:test"]
    left = {key: value for key, value in built.items() if key != "signatures"} | {"content": {}}
    digest = sha256(encode_canonical_json(left)).digest()
    assert len(pdu.event_id) == 44
    assert decode_event_id(digest) == pdu.event_id.replace("+", "-").replace("/", "_")


def test_only_version_3_has_event_ids_that_are_not_url_safe() -> None:
    events = [{"depth": depth, "content": {}} for depth in range(40)]
    for version in ROOM_VERSIONS.values():
        if number(version) > 2:
            text = "".join(event_id_of(version, event) for event in events)
            assert ("+" in text, "/" in text) == (number(version) == 3,) * 2
            assert ("-" in text, "_" in text) == (number(version) > 3,) * 2


def test_event_ids_of_every_version_are_stored_as_they_are() -> None:
    for text in ("$" + "a/+" * 14 + "A", "$" + "a_-" * 14 + "A", "$1:test", "$" + "A" * 26 + ":test"):
        assert decode_event_id(encode_event_id(EventId(text))) == text


def test_a_chosen_event_id_differs_where_the_event_does() -> None:
    version = ROOM_VERSIONS["2"]
    drafts = [EventDraft("m.room.message", {"body": body}) for body in ("tea", "milk")]
    built = [build(version, draft, depth=depth)["event_id"] for draft in drafts for depth in (7, 8)]
    assert len(set(built)) == 4


@pytest.mark.parametrize("event_id", [None, 1, "", "$", "$x", "x:test", "$x:", "$x:te st", "$x\0:test"])
def test_a_chosen_event_id_names_a_server(event_id: Any) -> None:
    version = ROOM_VERSIONS["1"]
    event = build(version, EventDraft("m.room.message", {"body": "tea"}))
    with pytest.raises(InvalidEvent):
        parse_pdu(version, {**event, "event_id": event_id})


@pytest.mark.parametrize(
    "references", [["$x:test"], [["$x:test"]], [["$x:test", {}, {}]], [["$x:test", "x"]], [[{}, {}]]]
)
def test_the_oldest_versions_refer_to_events_by_pairs(references: Any) -> None:
    version = ROOM_VERSIONS["1"]
    event = build(version, EventDraft("m.room.message", {"body": "tea"}))
    with pytest.raises(InvalidEvent):
        parse_pdu(version, {**event, "prev_events": references})


def test_a_wrong_hash_beside_a_reference_is_no_fault() -> None:
    version = ROOM_VERSIONS["1"]
    event = build(
        version, EventDraft("m.room.message", {"body": "tea"}), reference_hashes={"$before:test": "?"}
    )
    assert parse_pdu(version, event).prev_events == ("$before:test",)


def test_a_redaction_does_not_change_the_hash_that_others_refer_to() -> None:
    for version in ROOM_VERSIONS.values():
        pdu = parse_pdu(version, build(version, EventDraft("m.room.message", {"body": "tea"})))
        redacted = redact_pdu(version, pdu)
        assert reference_hash_text(version, redacted.json) == reference_hash_text(version, pdu.json)
        assert (redacted.content, redacted.prev_events) == ({}, pdu.prev_events)


# --- Numbers


@pytest.mark.invariant("SEC-JSON-1")
@pytest.mark.parametrize("version", ["1", "2", "3", "4", "5"])
def test_sec_json_1_old_rooms_take_any_number_and_keep_it(version: str) -> None:
    room_version = ROOM_VERSIONS[version]
    text = b'{"a":-0,"b":1.50,"c":1e20,"d":12345678901234567890123,"e":-0.0,"f":1e-7,"g":9007199254740993}'
    canonical = (
        b'{"a":0,"b":1.5,"c":1e+20,"d":12345678901234567890123,"e":-0.0,"f":1e-07,"g":9007199254740993}'
    )
    content = parse_json_object(text)
    built = build(room_version, EventDraft("m.room.message", content))
    pdu = parse_pdu(room_version, built)

    assert pdu.content == content
    assert canonical in canonical_event(room_version, built)
    assert b"12345678901234567890123" in write_json(client_event(pdu, with_room_id=True))


# --- Redaction

EVERYTHING: Final[dict[str, JsonObject]] = {
    "m.room.member": {
        "membership": 1, "join_authorised_via_users_server": 2, "third_party_invite": {"signed": 3, "x": 4},
    },
    "m.room.create": {"creator": 1, "room_version": 2},
    "m.room.join_rules": {"join_rule": 1, "allow": 2, "x": 3},
    "m.room.power_levels": dict.fromkeys(
        (
            "ban", "events", "events_default", "invite", "kick", "notifications", "redact", "state_default",
            "users", "users_default",
        ),
        1,
    ),
    "m.room.aliases": {"aliases": 1, "x": 2},
    "m.room.history_visibility": {"history_visibility": 1, "x": 2},
    "m.room.redaction": {"redacts": 1, "reason": 2},
}  # fmt: skip


@VERSIONS
def test_of_a_redacted_event_remains_what_its_version_says(version: RoomVersion) -> None:
    since = number(version).__ge__
    kept = {
        event_type: redact(version, {"type": event_type, "content": content})["content"]
        for event_type, content in EVERYTHING.items()
    }
    removed = {"notifications"} if since(11) else {"notifications", "invite"}
    assert kept == {
        "m.room.member": {"membership": 1}
        | ({"join_authorised_via_users_server": 2} if since(9) else {})
        | ({"third_party_invite": {"signed": 3}} if since(11) else {}),
        "m.room.create": {"creator": 1} | ({"room_version": 2} if since(11) else {}),
        "m.room.join_rules": {"join_rule": 1} | ({"allow": 2} if since(8) else {}),
        "m.room.power_levels": {key: 1 for key in EVERYTHING["m.room.power_levels"] if key not in removed},
        "m.room.aliases": {} if since(6) else {"aliases": 1},
        "m.room.history_visibility": {"history_visibility": 1},
        "m.room.redaction": {"redacts": 1} if since(11) else {},
    }
    old = {"origin": 1, "membership": 2, "prev_state": 3}
    event = {"type": "x", "content": {}, "event_id": "$x", **old, "redacts": 4, "unsigned": {}, "x": 5}
    assert redact(version, event) == {"type": "x", "content": {}, "event_id": "$x"} | (
        {} if since(11) else old
    )


@VERSIONS
def test_a_redaction_names_its_target_where_its_version_looks(version: RoomVersion) -> None:
    draft = EventDraft("m.room.redaction", {"redacts": "$target:test", "reason": "spam"})
    built = build(version, draft)

    assert ("redacts" in built, "redacts" in built["content"]) == (
        number(version) < 11,
        number(version) >= 11,
    )
    pdu = parse_pdu(version, built)
    assert pdu.redacts == "$target:test"
    shown = client_event(pdu, with_room_id=True)
    assert shown["redacts"] == shown["content"]["redacts"] == "$target:test"
    assert shown["content"]["reason"] == "spam"
    assert (
        parse_pdu(version, build(version, EventDraft("m.room.redaction", dict(draft.content), ""))).redacts
        is None
    )


# --- Authorization rules


OPEN: Final[JsonObject] = {"events": {"m.room.power_levels": 0, "m.room.join_rules": 0}}


def rule_of(version: RoomVersion, draft: Draft, *state: Draft) -> str | None:
    room = Room.with_members(version)
    room.put(*state)
    return refusing_rule(version, room.event(draft), room.state)


@pytest.mark.invariant("SEC-AUTH-1")
@VERSIONS
def test_sec_auth_1_each_version_numbers_its_rules(version: RoomVersion) -> None:
    """The same refusals, by the numbers of each version's page."""
    since = number(version).__ge__
    old, six, seven, eight, ten, twelve = (
        not since(6), since(6) and not since(7), since(7) and not since(8), since(8) and not since(10),
        since(10) and not since(12), since(12),
    )  # fmt: skip
    assert old + six + seven + eight + ten + twelve == 1
    open_levels = power_levels(**OPEN)
    expected: dict[str, tuple[Draft, tuple[Draft, ...], str]] = {
        "membership": (Draft("m.room.member", BOB, BOB), (), "5.1" if old or twelve else "4.1"),
        "join for others": (
            member(DAVE, "join", BOB),
            (),
            "5.2.2" if old else "4.2.2" if six or seven else "5.3.2" if twelve else "4.3.2",
        ),
        "not invited": (
            member(DAVE, "join"),
            (join_rules("invite"),),
            "5.2.6" if old else "4.2.6" if six or seven else "5.3.7" if twelve else "4.3.7",
        ),
        "cannot invite": (
            member(DAVE, "invite", BOB),
            (power_levels(invite=50),),
            "5.3.5" if old else "4.3.5" if six or seven else "5.4.5" if twelve else "4.4.5",
        ),
        "cannot kick": (
            member(MIA, "leave", BOB),
            (),
            "5.4.5" if old else "4.4.5" if six or seven else "5.5.5" if twelve else "4.5.5",
        ),
        "cannot ban": (
            member(MIA, "ban", BOB),
            (),
            "5.5.3" if old else "4.5.3" if six or seven else "5.6.3" if twelve else "4.6.3",
        ),
        "no membership": (
            member(BOB, "here"),
            (),
            "5.6" if old else "4.6" if six else "4.7" if seven else "5.8" if twelve else "4.8",
        ),
        "not joined": (Draft("m.room.message", DAVE), (), "6" if old or twelve else "5"),
        "level": (Draft("m.room.topic", BOB, ""), (), "8" if old or twelve else "7"),
        "foreign key": (Draft("x", ZOE, BOB), (), "9" if old or twelve else "8"),
        "users": (
            power_levels(users={ZOE: "x"}),
            (),
            "10.1" if old else "9.1" if six or seven or eight else "10.3" if twelve else "9.3",
        ),
        "too high": (
            power_levels(MIA, kick=60, **OPEN),
            (open_levels,),
            "10.3.2" if old else "9.3.2" if six or seven or eight else "10.6.2" if twelve else "9.5.2",
        ),
        "events": (
            power_levels(MIA, events={"m.room.power_levels": 0, "m.room.join_rules": 60}),
            (open_levels,),
            "10.5.1" if old else "9.5.1" if six or seven or eight else "10.8.1" if twelve else "9.7.1",
        ),
        "peer": (
            power_levels(MIA, users={ZOE: 100, MIA: 50}, **OPEN),
            (open_levels,),
            "10.6.1" if old else "9.6.1" if six or seven or eight else "10.9.1" if twelve else "9.8.1",
        ),
    }  # fmt: skip
    assert {name: rule_of(version, draft, *state) for name, (draft, state, _) in expected.items()} == {
        name: rule for name, (_, _, rule) in expected.items()
    }


@pytest.mark.invariant("SEC-AUTH-1")
@VERSIONS
def test_sec_auth_1_join_rules_and_knocks_mean_what_their_version_knows(version: RoomVersion) -> None:
    since = number(version).__ge__
    authorised = member(DAVE, "join", join_authorised_via_users_server=ZOE)
    known = {
        "invite": False,
        "public": True,
        "knock": False,
        "restricted": since(8),
        "knock_restricted": since(10),
    }
    for join_rule, is_allowed in {**known, "private": False}.items():
        assert (rule_of(version, authorised, join_rules(join_rule)) is None) == is_allowed, join_rule
    invited = {
        "invite": True,
        "public": True,
        "knock": since(7),
        "restricted": since(8),
        "knock_restricted": since(10),
    }
    for join_rule, is_allowed in invited.items():
        state = (join_rules(join_rule), member(DAVE, "invite", ZOE))
        assert (rule_of(version, member(DAVE, "join"), *state) is None) == is_allowed, join_rule
    knocking = {
        "invite": False,
        "public": False,
        "knock": since(7),
        "restricted": False,
        "knock_restricted": since(10),
    }
    for join_rule, is_allowed in knocking.items():
        assert (rule_of(version, member(DAVE, "knock"), join_rules(join_rule)) is None) == is_allowed, (
            join_rule
        )


@pytest.mark.invariant("SEC-AUTH-1")
@VERSIONS
def test_sec_auth_1_aliases_are_a_matter_of_servers_up_to_version_5(version: RoomVersion) -> None:
    is_special = number(version) <= 5
    assert rule_of(version, Draft("m.room.aliases", DAVE, "elsewhere")) == (
        None if is_special else "6" if number(version) == 12 else "5"
    )
    assert rule_of(version, Draft("m.room.aliases", ZOE, "elsewhere")) == ("4.2" if is_special else None)
    assert rule_of(version, Draft("m.room.aliases", ZOE, "")) == ("4.2" if is_special else None)
    assert rule_of(version, Draft("m.room.aliases", ZOE)) == ("4.1" if is_special else None)


@pytest.mark.invariant("SEC-AUTH-1")
@VERSIONS
def test_sec_auth_1_redactions_need_power_up_to_version_2(version: RoomVersion) -> None:
    is_special = number(version) <= 2
    room = Room.with_members(version)

    def refused(sender: str, redacts: Any, event_id: str) -> str | None:
        event = room.event(Draft("m.room.redaction", sender))
        event.json["redacts"] = redacts
        object.__setattr__(event, "event_id", event_id)
        return refusing_rule(version, event, room.state)

    assert refused(ZOE, "$x:elsewhere", "$y:test") is None
    assert refused(BOB, "$x:test", "$y:test") is None
    for redacts in ("$x:elsewhere", "$x", None, 1, ["$x:test"]):
        assert refused(BOB, redacts, "$y:test") == ("11.3" if is_special else None)
    assert redacts_others(version, room.event(Draft("m.room.redaction", BOB)), room.state) == is_special


@pytest.mark.invariant("SEC-AUTH-1")
@VERSIONS
def test_sec_auth_1_levels_of_notifications_are_guarded_from_version_6(version: RoomVersion) -> None:
    state = power_levels(events={"m.room.power_levels": 0}, notifications={"room": 50})
    raised = power_levels(MIA, events={"m.room.power_levels": 0}, notifications={"room": 60})
    assert (rule_of(version, raised, state) is None) == (number(version) < 6)


@VERSIONS
def test_levels_are_floats_then_strings_then_integers(version: RoomVersion) -> None:
    levels = [parse_level(version, value) for value in (50, 50.9, -0.5, " +0050 ", "50.0", True, None)]
    if number(version) <= 5:
        assert levels == [50, 50, 0, 50, None, None, None]
    elif number(version) <= 9:
        assert levels == [50, None, None, 50, None, None, None]
    else:
        assert levels == [50, None, None, None, None, None, None]


@pytest.mark.invariant("SEC-SIZE-1")
@VERSIONS
def test_sec_size_1_a_text_of_too_many_bytes_is_stored_and_rejected_up_to_version_10(
    version: RoomVersion,
) -> None:
    if number(version) < 11:
        assert rule_of(version, Draft("x", ZOE, "\U0001f375" * 64)) == "size limits"
        assert rule_of(version, Draft("é" * 128, ZOE)) == "size limits"
        assert rule_of(version, Draft("x", ZOE, "e" * 256)) == "size limits"
    assert rule_of(version, Draft("é" * 127, ZOE, "\U0001f375" * 63)) is None


# --- Signatures


@pytest.mark.invariant("SEC-SIGN-3")
@VERSIONS
def test_sec_sign_3_keys_must_have_been_valid_from_version_5(version: RoomVersion) -> None:
    pdu = parse_pdu(version, build(version, EventDraft("m.room.message", {"body": "tea"})))
    expired = {SERVER: {KEY.key_id: VerifyKey(KEY.public_key, pdu.origin_server_ts - 1)}}
    if number(version) < 5:
        verify_event_signatures(version, pdu, expired)
    else:
        with pytest.raises(BadSignature):
            verify_event_signatures(version, pdu, expired)
    verify_event_signatures(
        version, pdu, {SERVER: {KEY.key_id: VerifyKey(KEY.public_key, pdu.origin_server_ts)}}
    )


@pytest.mark.invariant("SEC-SIGN-3")
@VERSIONS
def test_sec_sign_3_who_chose_an_event_id_has_signed(version: RoomVersion) -> None:
    event = {**build(version, EventDraft("m.room.message", {"body": "tea"})), "event_id": "$x:elsewhere"}
    pdu = parse_pdu(version, event)
    assert required_signers(version, pdu) == {SERVER} | ({"elsewhere"} if number(version) <= 2 else set())
    invite = {"membership": "invite", "third_party_invite": {"signed": {}}}
    event = {**build(version, EventDraft("m.room.member", invite, BOB)), "event_id": "$x:elsewhere"}
    event["hashes"] = {"sha256": encode_base64(content_hash(version, event))}
    pdu = parse_pdu(version, event)
    assert required_signers(version, pdu) == ({"elsewhere"} if number(version) <= 2 else set())
