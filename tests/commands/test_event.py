"""lair-chat event check: what it prints of an event, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from homeserver.__main__ import main
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from tests.protocol.room_documents import ALICE, BOB, CARL, DocumentRoom, both_versions, computed_room
from tests.protocol.rooms import V11, V12

Check = Callable[[JsonObject], tuple[int, list[str], str]]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run `event check` on a document: exit code, the lines printed, errors without the path."""
    path = tmp_path / "event.json"

    def run(document: JsonObject) -> tuple[int, list[str], str]:
        path.write_text(json.dumps(document), "utf-8")
        code = main(["event", "check", str(path)])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.replace(str(path), "FILE")

    return run


def document_on(room: DocumentRoom) -> JsonObject:
    """The document on the newest event of a room, with everything that was there before."""
    *before, event = room.document()["events"]
    named = [one for one in before if one["event_id"] in ("$create", *event["auth_events"])]
    return {"room_version": room.version.version, "event": event, "auth_events": named}


def test_an_allowed_event_is_exit_code_0(check: Check) -> None:
    *auth_events, event = computed_room(V11)[0]
    create, member, pdu = computed_room(V11)[1]

    assert check({"event": event, "auth_events": auth_events}) == (
        0,
        [
            f"event ID      {pdu.event_id} (computed)",
            f"content hash  {event['hashes']['sha256']}",
            "              hashes.sha256 fits",
            f'auth events   m.room.create ""             {create.event_id}',
            '              m.room.power_levels ""       none',
            f'              m.room.member "@alice:test"  {member.event_id}',
            "verdict       allowed by rule 10 of room version 11",
        ],
        "",
    )


@both_versions
def test_a_refused_event_is_exit_code_1_with_the_rule(version: RoomVersion, check: Check) -> None:
    room = DocumentRoom(version)
    room.start()
    room.add("$name", "m.room.name", CARL, "", {"name": "mine"})
    code, lines, err = check(document_on(room))

    rule = {"11": "5", "12": "6"}[version.version]
    assert (code, err) == (1, "")
    assert lines[0] == "event ID      $name (as given)"
    assert lines[2] == "              the event has no hashes.sha256 to compare it with"
    assert lines[5] == f'              m.room.member "{CARL}"  none'
    assert lines[-1] == (
        f"verdict       refused by rule {rule} of room version {version.version}: {CARL} is not joined"
    )


def test_an_altered_event_is_told(check: Check) -> None:
    *auth_events, event = computed_room(V11)[0]
    event["content"] = {"topic": "coffee"}
    _, lines, _ = check({"event": event, "auth_events": auth_events})
    assert lines[2:5] == [
        f"              hashes.sha256 does not fit: {event['hashes']['sha256']}",
        "              servers take such an event for an altered one, and keep its redacted form",
        "              the verdict is about that form",
    ]

    event["event_id"] = "$x"
    _, lines, _ = check({"event": event, "auth_events": auth_events})
    assert lines[0:2] == [
        "event ID      $x (as given)",
        f"              {computed_room(V11)[1][-1].event_id} (computed: it is another one)",
    ]
    assert (
        lines[4] == "              servers take such an event for an altered one, and keep its redacted form"
    )
    assert lines[5].startswith("auth events   ")


def test_auth_events_that_are_not_there_or_not_named_are_told(check: Check) -> None:
    room = DocumentRoom(V12)
    room.start()
    room.add("$topic", "m.room.topic", ALICE, "", {"topic": "tea"}, auth_events=["$levels", "$lost"])
    document = document_on(room)
    document["auth_events"] += [one for one in room.events if one["event_id"] == "$alice"]
    code, lines, _ = check(document)

    assert code == 1
    assert lines[3:8] == [
        'auth events   m.room.create ""             $create',
        '              m.room.power_levels ""       $levels',
        '              m.room.member "@alice:test"  $alice, which the event does not name',
        "              $lost is named, but is not in the document; the verdict does without it",
        "              $alice is in the document, but the event does not name it; it does not count",
    ]

    del document["auth_events"][0]
    _, lines, _ = check(document)
    assert lines[3].endswith("none: no event names it, but the document has to hold it")
    assert lines[-1].startswith("verdict       refused by rule 2 of room version 12: ")


def test_a_create_event_has_no_auth_events(check: Check) -> None:
    room = DocumentRoom(V12)
    room.start()
    code, lines, _ = check({"event": room.events[0], "auth_events": []})

    assert code == 0
    assert lines[3:] == [
        "auth events   none are expected: a create event comes first",
        "verdict       allowed by rule 1.5 of room version 12",
    ]


def test_a_bad_document_is_exit_code_2(check: Check) -> None:
    assert check({"room_version": "11", "event": {}, "auth_events": []}) == (
        2,
        [],
        "lair-chat: FILE: event.type: is missing\n",
    )


def test_no_text_of_an_event_reaches_the_terminal_as_it_is(check: Check) -> None:
    room = DocumentRoom(V11)
    room.start()
    room.add("$\x1b[2J", "m.room.member", BOB, "@\x07é:test", {"membership": "invite\x1b"})
    code, lines, _ = check(document_on(room))

    assert code == 1
    assert lines[0] == r"event ID      $\x1b[2J (as given)"
    assert all(line.isascii() and line.isprintable() for line in lines)
