"""What is said of one event: its hashes, its auth events, and the verdict."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.document_json import parse_document
from homeserver.protocol.errors import BadDocument
from homeserver.protocol.event_reports import EventReport, report_on_event
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from tests.protocol.json_values import any_values
from tests.protocol.room_documents import (
    ALICE,
    BOB,
    CARL,
    DocumentRoom,
    both_versions,
    changed,
    computed_room,
    paths,
)
from tests.protocol.rooms import V11, V12
from tests.strategies import ROOM_VERSIONS


def started(version: RoomVersion) -> DocumentRoom:
    room = DocumentRoom(version)
    room.start()
    return room


def document_on(room: DocumentRoom) -> JsonObject:
    """The document on the newest event of a room, with its auth events, and the create event in any case."""
    *before, event = room.document()["events"]
    auth_events = [one for one in before if one["event_id"] in ("$create", *event["auth_events"])]
    return {"room_version": room.version.version, "event": event, "auth_events": auth_events}


def computed_document(version: RoomVersion) -> JsonObject:
    *auth_events, event = computed_room(version)[0]
    return {"room_version": version.version, "event": event, "auth_events": auth_events}


def auth_events_of(report: EventReport) -> list[tuple[str, str, str | None, bool]]:
    return [(*one.key, one.event_id, one.is_named) for one in report.expected]


# --- The verdict


@both_versions
def test_an_event_is_judged_by_its_auth_events(version: RoomVersion) -> None:
    room = started(version)
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "tea"})
    report = report_on_event(document_on(room))

    assert (report.refusal, report.not_there, report.not_named) == (None, (), ())
    assert report.allowed_by == {"11": "10", "12": "11"}[version.version]
    assert auth_events_of(report) == [
        ("m.room.create", "", "$create", True),
        ("m.room.power_levels", "", "$levels", True),
        ("m.room.member", BOB, "$bob", True),
    ]


@both_versions
def test_the_rule_that_refuses_it_is_named_as_the_version_numbers_it(version: RoomVersion) -> None:
    room = started(version)
    room.add("$name", "m.room.name", CARL, "", {"name": "mine"})
    report = report_on_event(document_on(room))

    assert report.refusal is not None and report.allowed_by is None
    assert report.refusal.rule == {"11": "5", "12": "6"}[version.version]
    assert report.refusal.reason == f"{CARL} is not joined"
    assert auth_events_of(report)[2] == ("m.room.member", CARL, None, False)


@both_versions
def test_an_auth_event_that_is_not_there_is_told_and_done_without(version: RoomVersion) -> None:
    room = started(version)
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "tea"})
    document = document_on(room)
    document["auth_events"] = [one for one in document["auth_events"] if one["event_id"] != "$bob"]
    report = report_on_event(document)

    assert report.not_there == ("$bob",)
    assert report.refusal is not None and "is not joined" in report.refusal.reason


@both_versions
def test_an_event_that_is_there_but_not_named_does_not_count(version: RoomVersion) -> None:
    room = started(version)
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "tea"})
    document = document_on(room)
    document["event"]["auth_events"].remove("$bob")
    report = report_on_event(document)

    assert (report.not_there, report.not_named) == ((), ("$bob",))
    assert auth_events_of(report)[2] == ("m.room.member", BOB, "$bob", False)
    assert report.refusal is not None and "is not joined" in report.refusal.reason


@both_versions
def test_of_two_events_for_a_place_the_named_one_counts(version: RoomVersion) -> None:
    room = started(version)
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "tea"})
    document = document_on(room)
    left = {**document["auth_events"][-1], "event_id": "$left", "content": {"membership": "leave"}}
    for auth_events in ([*document["auth_events"], left], [left, *document["auth_events"]]):
        report = report_on_event({**document, "auth_events": auth_events})
        assert auth_events_of(report)[2] == ("m.room.member", BOB, "$bob", True)
        assert (report.not_named, report.refusal) == (("$left",), None)


def test_an_event_that_names_none_has_all_that_are_there() -> None:
    room = started(V12)
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "tea"})
    document = document_on(room)
    del document["event"]["auth_events"]
    report = report_on_event(document)

    assert (report.refusal, report.not_named) == (None, ())


@both_versions
def test_a_wrong_auth_event_is_refused_by_the_rules_of_the_list(version: RoomVersion) -> None:
    room = started(version)
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "tea"})["auth_events"].append("$rules")
    report = report_on_event(document_on(room))

    assert report.refusal is not None
    assert report.refusal.rule == {"11": "2.2", "12": "3.2"}[version.version]


def test_in_version_12_the_create_event_is_not_named_but_has_to_be_there() -> None:
    room = started(V12)
    room.add("$topic", "m.room.topic", ALICE, "", {"topic": "tea"})
    document = document_on(room)
    assert report_on_event(document).refusal is None

    del document["auth_events"][0]
    report = report_on_event(document)
    assert report.refusal is not None and report.refusal.rule == "2"
    assert auth_events_of(report)[0] == ("m.room.create", "", None, False)


@pytest.mark.parametrize(
    ("version", "changes", "rule"),
    [
        (V11, {}, None),
        (V11, {"prev_events": ["$x"]}, "1.1"),
        (V11, {"room_id": "!room:elsewhere"}, "1.2"),
        (V11, {"content": {"room_version": "0"}}, "1.3"),
        (V11, {"content": {}}, None),
        (V12, {}, None),
        (V12, {"room_id": "!create"}, "1.2"),
        (V12, {"content": {"room_version": "12", "additional_creators": ["bob"]}}, "1.4"),
    ],
)
def test_a_create_event_is_judged_as_it_is(
    version: RoomVersion, changes: JsonObject, rule: str | None
) -> None:
    event = {**started(version).events[0], **changes}
    report = report_on_event({"room_version": version.version, "event": event, "auth_events": []})

    assert (None if report.refusal is None else report.refusal.rule) == rule
    assert report.expected == ()


def test_without_auth_events_there_are_none() -> None:
    room = started(V11)
    assert report_on_event({"event": room.events[0]}).refusal is None

    report = report_on_event({"room_version": "11", "event": room.events[1]})
    assert report.not_there == ("$create",)
    assert report.refusal is not None and report.refusal.rule == "2.4"


def test_a_second_create_event_is_refused() -> None:
    room = started(V11)
    room.add("$again", "m.room.create", BOB, "", {"room_version": "11"})
    report = report_on_event(document_on(room))

    assert report.refusal is not None and report.refusal.rule == "1.1"


# --- ID and hashes


@both_versions
def test_id_and_content_hash_are_computed(version: RoomVersion) -> None:
    document = computed_document(version)
    pdu = computed_room(version)[1][-1]
    report = report_on_event(document)

    assert (report.event.event_id, report.computed_id) == (pdu.event_id, pdu.event_id)
    assert report.content_hash == report.claimed_hash == document["event"]["hashes"]["sha256"]
    assert (report.has_given_id, report.has_valid_hash, report.is_redacted) == (False, True, False)
    assert report.refusal is None


@both_versions
def test_an_event_id_that_was_written_beside_it_changes_no_hash(version: RoomVersion) -> None:
    document = computed_document(version)
    pdu = computed_room(version)[1][-1]
    document["event"]["event_id"] = "$named"
    report = report_on_event(document)

    assert (report.event.event_id, report.computed_id) == ("$named", pdu.event_id)
    assert (report.has_given_id, report.has_valid_hash) == (True, True)


@both_versions
def test_an_altered_event_is_judged_in_its_redacted_form(version: RoomVersion) -> None:
    document = computed_document(version)
    document["event"]["content"] = {"topic": "coffee"}
    report = report_on_event(document)

    assert report.content_hash != report.claimed_hash
    assert (report.has_valid_hash, report.is_redacted) == (False, True)
    assert (report.event.content, report.computed_id) == ({}, report.event.event_id)


def test_a_hash_fits_whatever_its_padding() -> None:
    document = computed_document(V11)
    document["event"] |= {"event_id": "$x"}
    document["event"]["hashes"]["sha256"] += "="

    assert report_on_event(document).has_valid_hash


@pytest.mark.parametrize("hashes", [..., {}, [], {"sha256": 5}])
def test_a_written_event_may_have_no_hashes(hashes: Any) -> None:
    room = started(V11)
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "tea"})
    document = document_on(room)
    if hashes is not ...:
        document["event"]["hashes"] = hashes
    report = report_on_event(document)

    assert (report.computed_id, report.claimed_hash, report.has_valid_hash) == (None, None, False)
    assert len(report.content_hash) == 43


# --- Bad documents


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["event"], ..., "event: is missing"),
        (["event"], [], "event: is no object"),
        (["event", "type"], ..., "event.type: is missing"),
        (["event", "depth"], ..., "event.depth: is missing"),
        (["event", "sender"], "bob", "event: sender: 'bob' is not a user ID"),
        (["event", "content", "topic"], 1.5, "event: a float cannot be in canonical JSON"),
        (["auth_events"], {}, "auth_events: is no list"),
        (["auth_events", 1], 5, "auth_events[1]: is no object"),
        (["auth_events", 1, "content"], 5, "auth_events[1].content: is no object"),
        (["room_version"], "99", "room_version: room version '99' is not supported"),
        (["room_version"], 5, "room_version: is no string"),
    ],
)
def test_a_bad_document_is_told_where_and_why(path: list[str | int], value: Any, message: str) -> None:
    with pytest.raises(BadDocument) as raised:
        report_on_event(changed(computed_document(V11), path, value))

    assert str(raised.value).startswith(message)


def test_what_has_no_canonical_json_has_no_hash() -> None:
    room = started(V11)
    room.add("$topic", "m.room.topic", BOB, "", {"topic": 10**30})

    with pytest.raises(BadDocument, match="event: no canonical JSON: "):
        report_on_event(document_on(room))


def test_the_room_version_may_be_that_of_the_create_event() -> None:
    document = changed(computed_document(V12), ["room_version"], ...)
    assert report_on_event(document).version is V12

    with pytest.raises(BadDocument, match="room_version: is missing, and there is no create event"):
        report_on_event({**document, "auth_events": []})


@pytest.mark.invariant("SEC-JSON-2")
@given(st.data())
def test_sec_json_2_a_document_on_an_event_is_read_or_told_where_it_is_bad(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        room = started(data.draw(st.sampled_from(ROOM_VERSIONS)))
        room.add("$invite", "m.room.member", BOB, CARL, {"membership": "invite"})
        document = document_on(room)
    else:
        document = computed_document(data.draw(st.sampled_from((V11, V12))))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(paths(document) or [("event",)]))
        value = st.just(...) | any_values() | st.sampled_from(["$create", "m.room.create", "join", ALICE])
        document = changed(document, path, data.draw(value)) if document else document
    with suppress(BadDocument):
        report_on_event(parse_document(json.dumps(document).encode()))
