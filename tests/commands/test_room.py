"""lair-chat room resolve: the state of a document, and what a bad one gets."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.__main__ import main
from homeserver.protocol.room_versions import RoomVersion, room_version
from homeserver.protocol.strict_json import JsonObject
from tests.protocol.room_documents import ALICE, BOB, CARL, DocumentRoom
from tests.protocol.rooms import V11, V12
from tests.protocol.state_vectors import for_each_vector
from tests.strategies import ROOM_VERSIONS

V1 = room_version("1")
Resolve = Callable[[Any], "tuple[int, str, str]"]


@pytest.fixture
def resolve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Resolve:
    """Run `room resolve` on a document, or on the text of one: exit code, output, errors without the path."""
    path = tmp_path / "room.json"

    def run(document: Any) -> tuple[int, str, str]:
        path.write_text(document if isinstance(document, str) else json.dumps(document), "utf-8")
        code = main(["room", "resolve", str(path)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err.replace(str(path), "FILE")

    return run


def forked_room() -> DocumentRoom:
    """Bob set the topic while Alice banned him; both is in the room's past."""
    room = DocumentRoom(V12)
    room.start()
    room.add("$ban", "m.room.member", ALICE, BOB, {"membership": "ban"})
    room.state["m.room.member", BOB] = "$bob"
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "mine"}, after=["$bob"])
    room.add("$join", "m.room.message", ALICE, after=["$ban", "$topic"])
    return room


@for_each_vector
def test_rooms_of_other_projects_have_the_state_that_they_expect(
    document: JsonObject, expected: list[str], resolve: Resolve
) -> None:
    code, out, _ = resolve(document)

    assert code == 0
    by_id = {event.get("event_id"): event for event in document["events"]}
    printed = [
        (event_type, state_key, event_id)
        for event_type, by_key in json.loads(out).items()
        for state_key, event_id in by_key.items()
    ]
    assert sorted(event_id for _, _, event_id in printed) == expected
    for event_type, state_key, event_id in printed:
        if event_id in by_id:
            assert (by_id[event_id]["type"], by_id[event_id]["state_key"]) == (event_type, state_key)


def test_the_state_is_printed_by_type_and_state_key_in_order(resolve: Resolve) -> None:
    state = {
        "m.room.create": {"": "$create"},
        "m.room.join_rules": {"": "$rules"},
        "m.room.member": {"@alice:test": "$alice", "@bob:test": "$ban"},
        "m.room.power_levels": {"": "$levels"},
    }
    assert resolve(forked_room().document()) == (0, json.dumps(state, indent=2) + "\n", "")


def test_who_is_left_out_is_told_beside_the_state(resolve: Resolve) -> None:
    room = forked_room()
    room.add("$again", "m.room.topic", BOB, "", {"topic": "mine"})
    code, out, err = resolve(room.document())

    assert (code, json.loads(out)["m.room.member"][BOB]) == (0, "$ban")
    assert err == ("events[8]: $again is refused by the state before it: @bob:test is not joined (rule 6)\n")


def test_state_sets_are_resolved(resolve: Resolve) -> None:
    before = ["$create", "$alice", "$levels", "$rules"]
    document = forked_room().document(state_sets=[[*before, "$ban"], [*before, "$bob", "$topic"]])
    code, out, err = resolve(document)

    assert code == 0
    assert json.loads(out)["m.room.member"] == {ALICE: "$alice", BOB: "$ban"}
    assert "m.room.topic" not in json.loads(out)
    assert err == "events[6]: $topic is refused by the resolution: @bob:test is not joined (rule 6)\n"
    assert resolve({**document, "state_sets": []}) == (0, "{}\n", "")


@pytest.mark.parametrize(
    ("version", "other_room", "not_joined"),
    [
        (V1, "the create event is of the room !room:test (rule 2.5)", "6"),
        (V11, "it is of the room !other:test (rule 2.5)", "5"),
        (V12, "it is of the room !other:test (rule 2)", "6"),
    ],
)
def test_who_is_left_out_of_state_sets_is_told(
    version: RoomVersion, other_room: str, not_joined: str, resolve: Resolve
) -> None:
    room = DocumentRoom(version)
    room.start()
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "tea"})
    room.add("$name", "m.room.name", BOB, "", {"name": "tea"})
    room.add("$stranger", "m.room.topic", CARL, "", {"topic": "mine"})
    room.add("$strange", "m.room.name", ALICE, "", {"name": "mine"})["room_id"] = "!other:test"
    members = ["$create", "$alice", "$levels", "$rules", "$bob"]
    state_sets = [[*members, "$topic", "$name"], [*members, "$stranger", "$strange"]]
    code, out, err = resolve(room.document(state_sets=state_sets))

    assert code == 0
    assert {"$topic", "$name"} <= {event_id for ids in json.loads(out).values() for event_id in ids.values()}
    assert err.splitlines() == [
        f"events[7]: $stranger is refused by the resolution: {CARL} is not joined (rule {not_joined})",
        f"events[8]: $strange is refused by the resolution: {other_room}",
    ]


def test_who_is_in_the_state_is_not_said_to_be_left_out(resolve: Resolve) -> None:
    """Version 1 takes the older of two topics where neither is allowed."""
    room = DocumentRoom(V1)
    room.start()
    room.add("$old", "m.room.topic", CARL, "", {"topic": "old"})
    room.add("$new", "m.room.topic", CARL, "", {"topic": "new"})
    members = ["$create", "$alice", "$levels", "$rules", "$bob"]
    _, out, err = resolve(room.document(state_sets=[[*members, "$old"], [*members, "$new"]]))

    assert json.loads(out)["m.room.topic"] == {"": "$old"}
    assert err == f"events[6]: $new is refused by the resolution: {CARL} is not joined (rule 6)\n"


def test_version_1_leaves_out_the_members_after_one_that_is_refused(resolve: Resolve) -> None:
    room = DocumentRoom(V1)
    room.start()
    room.add("$ban", "m.room.member", ALICE, BOB, {"membership": "ban"})
    room.add("$back", "m.room.member", BOB, BOB, {"membership": "join"})
    room.add("$left", "m.room.member", BOB, BOB, {"membership": "leave"})
    state_sets = [["$create", "$alice", "$levels", "$rules", one] for one in ("$ban", "$back", "$left")]
    _, out, err = resolve(room.document(state_sets=state_sets))

    assert json.loads(out)["m.room.member"][BOB] == "$ban"
    assert err.splitlines() == [
        f"events[6]: $back is refused by the resolution: {BOB} is banned (rule 5.2.3)",
        "events[7]: $left is refused by the resolution: $back, which comes before it, is refused",
    ]


def test_a_room_version_is_looked_for_in_the_create_event(resolve: Resolve) -> None:
    document = forked_room().document()
    with_version = resolve(document)
    del document["room_version"]

    assert resolve(document) == with_version


def test_the_document_may_be_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(data: bytes) -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return main(["room", "resolve", "-"])

    assert run(json.dumps(forked_room().document()).encode()) == 0
    assert json.loads(capsys.readouterr().out)["m.room.member"][BOB] == "$ban"
    assert run(b"{]") == 2
    assert capsys.readouterr().err.startswith("lair-chat: standard input: line 1, column 2: not JSON: ")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "line 1, column 1: not JSON: Expecting value"),
        ('{"events": [{"type": "a", "type": "b"}]}', "events[0].type: a key stands twice in one object"),
        ({"room_version": "99", "events": []}, "room_version: room version '99' is not supported"),
        ({"room_version": "11", "events": [{"type": "x"}]}, "events[0].sender: is missing"),
        ({"room_version": "11", "events": []}, "events: none of them is the create event"),
    ],
)  # fmt: skip
def test_a_bad_document_is_told_where_and_why_with_exit_code_2(
    document: Any, message: str, resolve: Resolve
) -> None:
    code, out, err = resolve(document)

    assert (code, out) == (2, "")
    assert err.startswith(f"lair-chat: FILE: {message}")
    assert err.count("\n") == 1


def test_a_file_that_cannot_be_read_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["room", "resolve", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr() == (
        "",
        f"lair-chat: {tmp_path}/none.json cannot be read (No such file or directory)\n",
    )


@pytest.mark.parametrize("members", [0, 3000])
def test_an_answer_that_cannot_be_written_is_exit_code_3(members: int) -> None:
    """A short answer is written when all is said, a long one fails before."""
    room = forked_room()
    for number in range(members):
        user = f"@user{number}:test"
        room.add(f"${number}", "m.room.member", user, user, {"membership": "join"})
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "homeserver", "room", "resolve", "-"],
            input=json.dumps(room.document()),
            cwd=Path(__file__).parents[2],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )

    assert done.stderr == "lair-chat: the answer cannot be written (No space left on device)\n"
    assert done.returncode == 3


def test_no_text_of_an_event_reaches_the_terminal_as_it_is(resolve: Resolve) -> None:
    room = forked_room()
    room.add("$\x1b[2J", "m.room.topic", BOB, "\x07é", {})
    code, out, err = resolve(room.document())

    assert code == 0
    assert r"$\x1b[2J is refused" in err
    assert (out + err).isascii()
    assert (out + err).replace("\n", "").isprintable()


def test_neither_configuration_nor_database_nor_folder_is_touched(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "homeserver", "--config", "none.yaml", "room", "resolve", "-"],
        input=json.dumps(forked_room().document()),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "LC_ALL": "C", "LAIR_PROCESSES": "x"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["m.room.member"][BOB] == "$ban"
    assert list(tmp_path.iterdir()) == []


@given(st.data())
def test_no_document_ends_in_a_traceback(data: st.DataObject) -> None:
    """The text of a room in which a few characters were changed, taken away or added."""
    room = DocumentRoom(data.draw(st.sampled_from(ROOM_VERSIONS)))
    room.start()
    text = json.dumps(room.document())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(start + 12, len(text))))
        text = (
            text[:start]
            + data.draw(st.text(max_size=3) | st.sampled_from(['"', "{", "[]", "1"]))
            + text[end:]
        )
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdin", stdin)
        assert main(["room", "resolve", "-"]) in (0, 2)


def test_version_11_numbers_rules_otherwise(resolve: Resolve) -> None:
    room = DocumentRoom(V11)
    room.start()
    room.add("$topic", "m.room.topic", "@carl:elsewhere", "", {})

    assert "(rule 5)" in resolve(room.document())[2]
