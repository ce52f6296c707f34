from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from copy import deepcopy
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.protocol.canonical_json import MAX_INTEGER, canonical_json
from homeserver.protocol.errors import BadJson, EventTooLarge, InvalidEvent, ProtocolError
from homeserver.protocol.event_hashes import content_hash, event_id_of, has_valid_content_hash
from homeserver.protocol.events import (
    MAX_EVENT_BYTES,
    MAX_KEY_ID_BYTES,
    EventDraft,
    Pdu,
    build_pdu,
    client_event,
    parse_pdu,
    redact_pdu,
    stored_pdu,
)
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.signing import SigningKey, sign_event
from homeserver.protocol.strict_json import JsonObject, MinusZero
from homeserver.protocol.unpadded_base64 import encode_base64
from tests.protocol.json_values import any_values, canonical_objects
from tests.protocol.mutated_events import mutated, sealed, use
from tests.protocol.rooms import V11, V12, VERSIONS

ALICE: Final = UserId("@alice:test")
SERVER: Final = ServerName("test")
KEY: Final = SigningKey.from_seed("1", bytes(range(32)))
NOW: Final = 1_700_000_000_000


def event_id(letter: str) -> EventId:
    return EventId("$" + letter * 42 + "A")


def room_id_for(version: RoomVersion) -> RoomId:
    return RoomId("!" + "r" * 42 + "A") if version.room_id_is_create_hash else RoomId("!tea:test")


def build(version: RoomVersion, draft: EventDraft, **arguments: Any) -> Pdu:
    """A new event of alice."""
    defaults: dict[str, Any] = {
        "room_id": room_id_for(version),
        "sender": ALICE,
        "prev_events": (event_id("p"),),
        "auth_events": (event_id("a"), event_id("b")),
        "depth": 7,
        "origin_server_ts": NOW,
        "reference_hashes": defaultdict(lambda: 43 * "h"),
    }
    return build_pdu(version, draft=draft, **{**defaults, **arguments})


def build_create(version: RoomVersion) -> Pdu:
    room_id = None if version.room_id_is_create_hash else RoomId("!tea:test")
    draft = EventDraft("m.room.create", {"room_version": version.version}, "")
    return build(version, draft, room_id=room_id, prev_events=(), auth_events=(), depth=1)


def as_sent(version: RoomVersion, pdu: Pdu) -> JsonObject:
    """A Pdu as another server gets it."""
    return sign_event(version, deepcopy(pdu.json), SERVER, KEY)


def references(version: RoomVersion, event_ids: Iterable[Any]) -> list[Any]:
    """References to events as a version writes them."""
    if version.version in ("1", "2"):
        return [[event_id, {"sha256": "x"}] for event_id in event_ids]
    return list(event_ids)


def message(version: RoomVersion, **changes: Any) -> JsonObject:
    """A message as another server gets it, with other values for some keys, and hashed thereafter."""
    event = {**build(version, EventDraft("m.room.message", {"body": "tea"})).json, **changes}
    try:
        event["hashes"] = {"sha256": encode_base64(content_hash(version, event))}
    except BadJson:
        return event
    return {"signatures": {}, **event}


DRAFTS = [
    EventDraft("m.room.message", {"body": "tea", "n": [1, None, {"é": True}]}),
    EventDraft("m.room.topic", {"topic": "tea"}, ""),
    EventDraft("m.room.member", {"membership": "join"}, ALICE),
    EventDraft("é\0", {}, "\U0001f375\0"),
]


@VERSIONS
@pytest.mark.parametrize("draft", DRAFTS)
def test_what_one_server_builds_another_reads(version: RoomVersion, draft: EventDraft) -> None:
    built = build(version, draft)
    read = parse_pdu(version, as_sent(version, built), event_id=built.event_id)

    for name in (
        "event_id",
        "room_id",
        "type",
        "sender",
        "state_key",
        "content",
        "prev_events",
        "auth_events",
        "depth",
    ):
        assert getattr(read, name) == getattr(built, name)
    assert (read.content, read.state_key, read.sender) == (draft.content, draft.state_key, ALICE)
    assert "signatures" not in built.json
    assert has_valid_content_hash(version, built.json)
    assert built.event_id == event_id_of(version, read.json)
    stored = stored_pdu(version, built.room_id, built.event_id, built.json)
    assert (stored.prev_events, stored.json) == (built.prev_events, built.json)


@VERSIONS
@given(canonical_objects(), st.none() | st.text(max_size=20))
def test_every_allowed_content_survives_the_way(
    version: RoomVersion, content: JsonObject, state_key: str | None
) -> None:
    built = build(version, EventDraft("org.test", content, state_key))
    read = parse_pdu(version, as_sent(version, built))
    assert (read.event_id, read.content, read.state_key) == (built.event_id, content, state_key)


def test_the_room_id_of_version_12_is_made_of_the_create_event() -> None:
    create = build_create(V12)
    assert create.room_id == "!" + create.event_id[1:]
    assert "room_id" not in create.json
    assert parse_pdu(V12, as_sent(V12, create)).room_id == create.room_id
    with pytest.raises(InvalidEvent):
        parse_pdu(V12, {**as_sent(V12, create), "room_id": create.room_id})

    older = build_create(V11)
    assert older.json["room_id"] == older.room_id == "!tea:test"
    with pytest.raises(InvalidEvent):
        parse_pdu(V11, {key: value for key, value in as_sent(V11, older).items() if key != "room_id"})


def test_an_event_is_built_with_a_room_id_exactly_where_it_has_one() -> None:
    for version, draft, room_id in (
        (V12, EventDraft("m.room.create", {}, ""), room_id_for(V12)),
        (V12, EventDraft("m.room.message", {}), None),
        (V11, EventDraft("m.room.create", {}, ""), None),
    ):
        with pytest.raises(InvalidEvent):
            build(version, draft, room_id=room_id)


@pytest.mark.invariant("SEC-SIGN-4")
@VERSIONS
def test_sec_sign_4_an_event_with_another_content_is_redacted_under_its_own_id(version: RoomVersion) -> None:
    built = build(version, EventDraft("m.room.member", {"membership": "join", "displayname": "Tea"}, ALICE))
    for changes in ({"content": {"membership": "join", "displayname": "Coffee"}}, {"x": 1}):
        pdu = parse_pdu(version, {**as_sent(version, built), **changes})
        assert pdu.event_id == built.event_id
        assert pdu.content == pdu.json["content"] == {"membership": "join"}
        assert "x" not in pdu.json
        assert pdu.json["signatures"]

    redacted = redact(version, as_sent(version, built))
    assert parse_pdu(version, redacted).json == redacted


@pytest.mark.invariant("SEC-SIGN-4")
@VERSIONS
def test_sec_sign_4_the_event_id_is_computed_never_believed(version: RoomVersion) -> None:
    event = message(version, event_id="$mine")
    if version.version in ("1", "2"):  # there it names the server that has chosen it, and must have signed
        with pytest.raises(InvalidEvent):
            parse_pdu(version, event)
        return
    pdu = parse_pdu(version, event)
    assert pdu.event_id == event_id_of(version, event) != "$mine"
    assert client_event(pdu, with_room_id=True)["event_id"] == pdu.event_id
    with pytest.raises(InvalidEvent):
        parse_pdu(version, event, event_id=event_id("x"))


REFERENCES: Final[list[Any]] = [None, {}, "x", [1], [None], ["x"], ["$"], [["$x"]], [["$x", 1]], ["$a\0"]]
WRONG: Final[dict[str, list[Any]]] = {
    "type": [None, 1, [], {}, True],
    "state_key": [None, 0, False, [], {}],
    "content": [None, [], "x", 1, True],
    "sender": [None, 1, "alice", "@alice", "alice:test", "@alice:", "@a:te st", "@a\0:test", []],
    "room_id": [None, 1, "", "!", "tea:test", "#tea:test", "!tea:te st", "!tea", []],
    "prev_events": REFERENCES,
    "auth_events": REFERENCES,
    "depth": [None, -1, True, False, "1", []],
    "origin_server_ts": [None, True, "1", []],
    "signatures": [None, [], "x", {"test": None}, {"test": []}, {"test": {"ed25519:1": 1}}],
}


@pytest.mark.invariant("SEC-JSON-2")
@VERSIONS
@pytest.mark.parametrize(("key", "value"), [(key, value) for key in WRONG for value in WRONG[key]])
def test_sec_json_2_a_field_of_the_wrong_type_is_refused(version: RoomVersion, key: str, value: Any) -> None:
    parse_pdu(version, message(version))
    with pytest.raises(InvalidEvent):
        parse_pdu(version, message(version, **{key: value}))


@VERSIONS
@pytest.mark.parametrize(
    "key",
    [
        "type",
        "content",
        "sender",
        "room_id",
        "prev_events",
        "auth_events",
        "depth",
        "origin_server_ts",
        "hashes",
    ],
)
def test_a_missing_field_is_refused(version: RoomVersion, key: str) -> None:
    event = message(version)
    del event[key]
    with pytest.raises(InvalidEvent):
        parse_pdu(version, event)


@VERSIONS
@pytest.mark.parametrize("hashes", [None, [], {}, {"sha256": 1}, {"sha256": "not base64"}])
def test_an_event_without_a_content_hash_is_refused(version: RoomVersion, hashes: Any) -> None:
    with pytest.raises(InvalidEvent):
        parse_pdu(version, {**message(version), "hashes": hashes})


@pytest.mark.parametrize("event", [None, [], "x", 1, True])
def test_what_is_no_object_is_no_event(event: Any) -> None:
    with pytest.raises(InvalidEvent):
        parse_pdu(V12, event)


def test_a_room_id_is_one_of_its_room_version() -> None:
    with pytest.raises(InvalidEvent):
        parse_pdu(V12, message(V12, room_id="!tea:test"))
    with pytest.raises(InvalidEvent):
        parse_pdu(V11, message(V11, room_id=room_id_for(V12)))


@pytest.mark.invariant("SEC-JSON-1")
@VERSIONS
@pytest.mark.parametrize("value", [0.5, -0.0, 2**53, -(2**53), MinusZero(), "\ud800", {"\ud800": 1}])
def test_sec_json_1_values_without_canonical_json_are_refused(version: RoomVersion, value: Any) -> None:
    if not version.strict_json and not isinstance(value, str | dict):
        content = {"a": [value]}
        assert (
            parse_pdu(version, as_sent(version, build(version, EventDraft("x", content)))).content == content
        )
        return
    for changes in ({"content": {"a": [value]}}, {"x": value}, {"depth": value}, {"origin_server_ts": value}):
        with pytest.raises(BadJson):
            parse_pdu(version, message(version, **changes))
    with pytest.raises(BadJson):
        build(version, EventDraft("m.room.message", {"a": [value]}))


@VERSIONS
def test_unsigned_is_left_out_whatever_it_is(version: RoomVersion) -> None:
    plain = parse_pdu(version, message(version))
    for unsigned in ({"age": 1}, {"x": 0.5}, "x", None, {"big": "x" * MAX_EVENT_BYTES}):
        pdu = parse_pdu(version, {**message(version), "unsigned": unsigned})
        assert (pdu.event_id, pdu.json) == (plain.event_id, plain.json)


@VERSIONS
def test_odd_users_of_the_past_are_read(version: RoomVersion) -> None:
    for sender in ("@:test", "@Alice Smith:test", "@é:test", "@a\nb:test", "@a:test:8448", "@a:[::1]"):
        assert parse_pdu(version, message(version, sender=sender)).sender == sender


@pytest.mark.invariant("SEC-SIZE-1")
@VERSIONS
def test_sec_size_1_identifiers_have_at_most_255_bytes(version: RoomVersion) -> None:
    longest: dict[str, Any] = {
        "type": "é" * 127 + "x",
        "state_key": "é" * 127 + "x",
        "sender": "@" + "é" * 124 + "x:test",
    }
    parse_pdu(version, message(version, **longest))
    if not version.strict_byte_limits:
        del longest["type"], longest["state_key"]
        parse_pdu(version, message(version, type="é" * 255, state_key="é" * 255))
        for key in ("type", "state_key"):
            with pytest.raises(EventTooLarge):
                parse_pdu(version, message(version, **{key: "é" * 256}))
    for key, value in longest.items():
        with pytest.raises(EventTooLarge):
            parse_pdu(version, message(version, **{key: value.replace("x", "xx")}))
    too_long = "!" + "x" * 250 + ":test"
    with pytest.raises(EventTooLarge):
        parse_pdu(version, message(version, room_id=too_long))
    for key in ("prev_events", "auth_events"):
        with pytest.raises(InvalidEvent):
            parse_pdu(version, message(version, **{key: references(version, ["$" + "x" * 255])}))
    with pytest.raises(EventTooLarge):
        build(version, EventDraft("é" * 128, {}))
    with pytest.raises(EventTooLarge):
        build(version, EventDraft("x", {}, "é" * 128))


@pytest.mark.invariant("SEC-SIZE-1")
@VERSIONS
@pytest.mark.parametrize(("key", "limit"), [("prev_events", 20), ("auth_events", 10)])
def test_sec_size_1_a_pushed_event_names_few_others(version: RoomVersion, key: str, limit: int) -> None:
    event_ids = [f"${number:043d}" for number in range(limit + 1)]
    named = references(version, event_ids)
    parse_pdu(version, message(version, **{key: named[:limit]}))
    with pytest.raises(InvalidEvent):
        parse_pdu(version, message(version, **{key: named}))
    assert parse_pdu(version, message(version, **{key: named}), pushed=False)
    with pytest.raises(InvalidEvent):
        build(version, EventDraft("x", {}), **{key: event_ids})


@pytest.mark.invariant("SEC-SIZE-1")
@VERSIONS
def test_sec_size_1_an_event_has_at_most_65536_bytes_with_its_signatures(version: RoomVersion) -> None:
    spare = MAX_EVENT_BYTES - len(
        canonical_json(as_sent(version, build(version, EventDraft("x", {"a": ""}))))
    )
    largest = message(version, type="x", content={"a": "x" * spare})
    signed = sign_event(version, largest, SERVER, KEY)
    assert len(canonical_json(signed)) == MAX_EVENT_BYTES
    parse_pdu(version, signed)
    with pytest.raises(EventTooLarge):
        parse_pdu(version, {**signed, "signatures": {**signed["signatures"], "b": {}}})
    with pytest.raises(EventTooLarge):
        parse_pdu(version, message(version, content={"a": "é" * (MAX_EVENT_BYTES // 2)}))


@pytest.mark.invariant("SEC-SIZE-1")
@VERSIONS
def test_sec_size_1_an_event_of_ours_leaves_room_for_our_signature(version: RoomVersion) -> None:
    key = SigningKey.from_seed("k" * (MAX_KEY_ID_BYTES - len("ed25519:")), bytes(range(32)))

    def signed_size(size: int) -> int:
        pdu = build(version, EventDraft("x", {"a": "é" + "x" * size}, ""))
        return len(canonical_json(sign_event(version, pdu.json, SERVER, key)))

    spare = MAX_EVENT_BYTES - signed_size(0)
    assert signed_size(spare) == MAX_EVENT_BYTES
    with pytest.raises(EventTooLarge):
        signed_size(spare + 1)


@pytest.mark.invariant("SEC-SIZE-1")
@VERSIONS
def test_sec_size_1_depth_is_kept_within_what_events_may_say(version: RoomVersion) -> None:
    greatest = MAX_INTEGER if version.strict_json else 2**63 - 1
    for depth in (0, 1, greatest):
        assert parse_pdu(version, message(version, depth=depth)).depth == depth
    for depth in (greatest, greatest + 1, 2**64):
        assert build(version, EventDraft("x", {}), depth=depth).depth == greatest
    with pytest.raises((BadJson, InvalidEvent)):
        parse_pdu(version, message(version, depth=greatest + 1))


@VERSIONS
def test_a_content_that_would_be_nested_too_deep_for_an_event_is_refused(version: RoomVersion) -> None:
    content: JsonObject = {}
    for _ in range(62):
        content = {"a": content}
    read = parse_pdu(version, as_sent(version, build(version, EventDraft("x", content))))
    assert read.content == content
    with pytest.raises(BadJson):
        build(version, EventDraft("x", {"a": content}))


@pytest.mark.parametrize(
    "draft",
    [
        ("x", []),
        ("x", None),
        (1, {}),
        ("x", {}, 1),
        ("\ud800", {}),
        ("x", {}, "\ud800"),
        ("x", {1: 2}),
    ],
)
def test_a_draft_of_the_wrong_types_is_refused(draft: tuple[Any, ...]) -> None:
    with pytest.raises((InvalidEvent, BadJson)):
        build(V12, EventDraft(*draft))


@VERSIONS
def test_a_client_sees_its_form_of_an_event(version: RoomVersion) -> None:
    pdu = build(version, DRAFTS[1])
    expected = {
        "type": "m.room.topic",
        "event_id": pdu.event_id,
        "sender": ALICE,
        "origin_server_ts": NOW,
        "content": {"topic": "tea"},
        "state_key": "",
    }
    assert client_event(pdu, with_room_id=False) == expected
    assert client_event(pdu, with_room_id=True) == {**expected, "room_id": pdu.room_id}
    assert "state_key" not in client_event(build(version, DRAFTS[0]), with_room_id=False)
    assert client_event(build_create(version), with_room_id=True)["room_id"] == build_create(version).room_id


@VERSIONS
def test_a_client_finds_the_target_of_a_redaction_in_both_places(version: RoomVersion) -> None:
    pdu = build(version, EventDraft("m.room.redaction", {"redacts": "$x", "reason": "y"}))
    redacted = redact_pdu(version, pdu)
    for shown in (client_event(one, with_room_id=False) for one in (pdu, redacted)):
        if shown["content"] or version.redacts_in_content:
            assert shown["redacts"] == shown["content"]["redacts"] == "$x"
    assert (redacted.redacts == "$x") == ("redacts" in client_event(redacted, with_room_id=False))
    assert (redacted.redacts == "$x") == version.redacts_in_content
    wrong: list[Any] = [1, None, [], "y"]
    for redacts in wrong:
        places: dict[str, Any] = {"content": {"redacts": redacts}, "redacts": "$y"}
        if not version.redacts_in_content:
            places = {"content": {"redacts": "$y"}, "redacts": redacts}
        odd = parse_pdu(version, message(version, type="m.room.redaction", **places))
        assert "redacts" not in client_event(odd, with_room_id=False)


@pytest.mark.invariant("SEC-JSON-2")
@VERSIONS
@given(any_values())
def test_sec_json_2_no_json_raises_anything_but_errors_of_the_core(version: RoomVersion, event: Any) -> None:
    with pytest.raises(ProtocolError):
        parse_pdu(version, event)


@pytest.mark.invariant("SEC-JSON-2")
@settings(max_examples=300)
@VERSIONS
@given(st.data())
def test_sec_json_2_no_mutation_raises_anything_but_errors_of_the_core(
    version: RoomVersion, data: st.DataObject
) -> None:
    event = data.draw(mutated(as_sent(version, build(version, data.draw(st.sampled_from(DRAFTS))))))
    if data.draw(st.booleans()):
        event = sealed(version, event, SERVER, KEY)
    try:
        pdu = parse_pdu(version, event)
    except ProtocolError:
        return
    use(version, pdu)
