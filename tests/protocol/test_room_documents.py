"""Documents about a room: what is read of them, and where a bad one is bad."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from copy import deepcopy
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol import room_documents
from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.document_json import parse_document
from homeserver.protocol.errors import BadDocument
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_documents import RoomDocument, read_room
from homeserver.protocol.room_replay import replay
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.state_resolution import resolve
from homeserver.protocol.strict_json import JsonObject
from tests.protocol.json_values import any_values
from tests.protocol.room_documents import (
    ALICE,
    BOB,
    DocumentRoom,
    both_versions,
    changed,
    computed_room,
    paths,
)
from tests.protocol.rooms import V11, V12
from tests.strategies import ROOM_VERSIONS


def document_of(version: RoomVersion, **fields: Any) -> JsonObject:
    """A room of seven events, the last of which is a message."""
    room = DocumentRoom(version)
    room.start()
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "tea"})
    room.add("$message", "m.room.message", BOB)
    return room.document(**fields)


SETS: Final = [["$create", "$alice", "$levels"], ["$create", "$alice", "$levels", "$topic"]]


# --- What is read


@both_versions
def test_a_document_says_what_its_events_say(version: RoomVersion) -> None:
    room = read_room(document_of(version))

    assert (room.version, room.state_sets, room.absent, room.notes) == (version, None, frozenset(), [])
    topic = room.events[EventId("$topic")]
    assert (topic.type, topic.sender, topic.key, topic.content) == (
        "m.room.topic", BOB, ("m.room.topic", ""), {"topic": "tea"},
    )  # fmt: skip
    assert (topic.prev_events, topic.depth, topic.origin_server_ts) == (("$bob",), 6, 5)
    assert room.places[EventId("$topic")] == "events[5]"


@both_versions
def test_state_sets_are_states(version: RoomVersion) -> None:
    room = read_room(document_of(version, state_sets=SETS))

    assert room.state_sets is not None
    assert [sorted(state.values()) for state in room.state_sets] == [sorted(ids) for ids in SETS]
    assert room.state_sets[1]["m.room.topic", ""] == "$topic"


def test_whoever_writes_an_event_down_may_leave_out_what_only_hashes_need() -> None:
    document = document_of(V11)
    for event in document["events"]:
        del event["origin_server_ts"]
        if event["type"] == "m.room.create":
            del event["prev_events"], event["auth_events"]
        else:
            del event["room_id"]
    room = read_room(document)

    assert {event.origin_server_ts for event in room.events.values()} == {0}
    assert {event.room_id for event in room.events.values()} == {"!room:test"}
    assert replay(room.version, room.events).state["m.room.topic", ""] == "$topic"


@both_versions
def test_an_event_id_is_any_text(version: RoomVersion) -> None:
    text = json.dumps(document_of(version)).replace('"$', '"')
    room = read_room(json.loads(text.replace('"create"', '"CREATE"').replace('"topic"', '"Tee & Gebäck"')))

    assert list(room.events)[:2] == ["CREATE", "alice"]
    assert "Tee & Gebäck" in replay(room.version, room.events).state.values()


@both_versions
def test_references_may_be_pairs(version: RoomVersion) -> None:
    document = document_of(version)
    for event in document["events"][::2]:
        event["prev_events"] = [[event_id, {"sha256": "x"}] for event_id in event["prev_events"]]
        event["auth_events"] = [[event_id, {}] for event_id in event["auth_events"]]

    assert _references(read_room(document)) == _references(read_room(document_of(version)))


def test_a_missing_depth_is_one_more_than_that_of_the_previous_events() -> None:
    document = document_of(V11)
    document["events"][3]["depth"] = 40
    document["events"][5]["prev_events"] = ["$bob", "$alice"]
    document["events"][6]["depth"] = MAX_INTEGER
    document["events"].append({**document["events"][6], "event_id": "$deep", "prev_events": ["$message"]})
    del document["events"][7]["depth"]

    assert [event.depth for event in read_room(document).events.values()] == [
        1, 2, 3, 40, 41, 42, MAX_INTEGER, MAX_INTEGER,
    ]  # fmt: skip


@given(st.permutations(range(7)))
def test_with_state_sets_a_missing_depth_does_not_depend_on_the_order_of_the_listing(
    order: list[int],
) -> None:
    """$topic and $message are in a circle, on which $later builds."""
    document = document_of(V11, state_sets=[])
    events = document["events"]
    events[2]["prev_events"].append("$lost")
    events[5]["prev_events"].append("$message")
    events[0] |= {"prev_events": [], "depth": 7}
    later = {**events[6], "event_id": "$later", "prev_events": ["$message"]}
    document["events"] = [later, *(events[index] for index in order)]

    assert {event_id: event.depth for event_id, event in read_room(document).events.items()} == {
        "$create": 7, "$alice": 8, "$levels": 9, "$rules": 10, "$bob": 11, "$topic": 12, "$message": 13,
        "$later": 14,
    }  # fmt: skip


@pytest.mark.invariant("SEC-RES-1")
def test_sec_res_1_missing_depths_of_a_long_circle_need_no_recursion() -> None:
    room = DocumentRoom(V11)
    room.start()
    length = 3 * sys.getrecursionlimit()
    for number in range(length):
        room.add(f"${number:06}", "m.room.message", ALICE)
    document = changed(room.document(state_sets=[]), ["events", 5, "prev_events"], [f"${length - 1:06}"])
    document["events"].reverse()

    assert read_room(document).events[EventId("$000000")].depth == length


@both_versions
def test_events_come_after_what_they_refer_to(version: RoomVersion) -> None:
    document = document_of(version)
    document["events"].reverse()

    assert list(read_room(document).events) == [
        "$create", "$alice", "$levels", "$rules", "$bob", "$topic", "$message",
    ]  # fmt: skip


@both_versions
def test_the_create_event_names_the_room_version_where_the_document_does_not(version: RoomVersion) -> None:
    assert read_room(changed(document_of(version), ["room_version"], ...)).version is version


@both_versions
def test_the_room_version_of_the_document_counts(version: RoomVersion) -> None:
    document = document_of(version)
    create = document["events"][0]

    create["content"] = {"room_version": "4711"}
    [note] = read_room(document).notes
    assert note.startswith("events[0].content.room_version: is '4711', but the document is of version ")
    create["content"] = {"creator": ALICE}
    room = read_room(document)
    assert room.notes == []
    assert not replay(room.version, room.events).refused


def test_in_version_12_the_room_may_have_any_name_where_the_id_of_the_create_event_was_given() -> None:
    document = document_of(V12)
    for event in document["events"]:
        event["room_id"] = "!room:test"
    room = read_room(document)

    assert {event.room_id for event in room.events.values()} == {"!create"}
    assert not replay(room.version, room.events).refused


def test_in_version_12_an_event_of_another_room_stays_one() -> None:
    document = document_of(V12)
    document["events"][5]["room_id"] = "!other"
    room = read_room(document)

    assert list(replay(room.version, room.events).refused) == ["$topic"]


def test_what_is_unknown_is_ignored() -> None:
    document = {"title": 5, **document_of(V11)}
    document["events"][1] |= {"unsigned": 7, "hashes": [], "test-comments": None}

    assert _references(read_room(document)) == _references(read_room(document_of(V11)))


def test_auth_events_that_are_not_there_are_noted() -> None:
    document = document_of(V11, state_sets=SETS)
    document["events"][5]["auth_events"].append("$lost")
    room = read_room(document)

    assert room.absent == {"$lost"}
    assert room.notes == ["events[5].auth_events[3]: $lost is not among the events, and left out"]


def test_with_state_sets_previous_events_do_not_matter() -> None:
    document = document_of(V11, state_sets=SETS)
    document["events"][5]["prev_events"] = ["$message", "$lost"]

    assert read_room(document).state_sets is not None


# --- Events with computed IDs


@both_versions
def test_the_id_of_an_event_that_has_none_is_computed(version: RoomVersion) -> None:
    events, pdus = computed_room(version)
    room = read_room({"events": [{**event, "unsigned": {"age": 5}} for event in events]})

    assert list(room.events) == [pdu.event_id for pdu in pdus]
    assert [event.room_id for event in room.events.values()] == [pdus[0].room_id] * 3
    assert len(replay(room.version, room.events).state) == 3


@both_versions
def test_where_the_content_hash_is_wrong_the_redacted_event_counts(version: RoomVersion) -> None:
    events, pdus = computed_room(version)
    events[2]["content"] = {"topic": "coffee"}
    room = read_room({"events": events})

    assert room.events[pdus[2].event_id].content == {}
    assert room.notes == ["events[2]: its content hash is wrong, so the redacted event counts"]


def test_a_create_event_with_a_computed_id_stays_what_it_is() -> None:
    events, _ = computed_room(V11)
    del events[1:]
    room = read_room({"room_version": "12", "events": [{**events[0], "event_id": "$x"}]})
    assert room.events[EventId("$x")].content["room_version"] == "12"

    with pytest.raises(BadDocument, match=r"events\[0\]: a create event of this version has no room_id"):
        read_room({"room_version": "12", "events": events})


# --- Where a bad document is bad


@pytest.mark.parametrize(
    ("path", "value", "where", "why"),
    [
        (["events"], ..., "events", "is missing"),
        (["events"], {}, "events", "is no list"),
        (["events"], [], "events", "none of them is the create event"),
        (["room_version"], 12, "room_version", "is no string"),
        (["room_version"], None, "room_version", "is no string"),
        (["room_version"], "99", "room_version", "room version '99' is not supported; known are"),
        (["events", 1], 5, "events[1]", "is no object"),
        (["events", 1, "event_id"], 5, "events[1].event_id", "is no string"),
        (["events", 1, "type"], None, "events[1].type", "is no string"),
        (["events", 1, "type"], ..., "events[1].type", "is missing"),
        (["events", 1, "sender"], ..., "events[1].sender", "is missing"),
        (["events", 1, "sender"], ["@a:b"], "events[1].sender", "is no string"),
        (["events", 1, "content"], ..., "events[1].content", "is missing"),
        (["events", 1, "content"], [], "events[1].content", "is no object"),
        (["events", 1, "state_key"], None, "events[1].state_key", "is no string"),
        (["events", 1, "room_id"], {}, "events[1].room_id", "is no string"),
        (["events", 0, "room_id"], ..., "events[0].room_id", "is missing"),
        (["events", 1, "depth"], 1.5, "events[1].depth", "is no integer"),
        (["events", 1, "depth"], True, "events[1].depth", "is no integer"),
        (["events", 1, "origin_server_ts"], "1", "events[1].origin_server_ts", "is no integer"),
        (["events", 1, "prev_events"], "$a", "events[1].prev_events", "is no list"),
        (["events", 1, "prev_events", 0], 7, "events[1].prev_events[0]", "is no event ID"),
        (["events", 1, "prev_events", 0], ["$create"], "events[1].prev_events[0]", "is no event ID"),
        (["events", 1, "prev_events", 0], [{}, {}], "events[1].prev_events[0]", "is no event ID"),
        (["events", 1, "prev_events", 0], "$no", "events[1].prev_events[0]", "$no is not among the events"),
        (["events", 1, "auth_events"], {}, "events[1].auth_events", "is no list"),
        (["events", 1, "auth_events", 0], None, "events[1].auth_events[0]", "is no event ID"),
        (["events", 2, "event_id"], "$alice", "events[2].event_id", "$alice is the ID of events[1] too"),
        (["events", 0, "state_key"], ..., "events", "none of them is the create event"),
        (["state_sets"], {}, "state_sets", "is no list"),
        (["state_sets"], [[], 5], "state_sets[1]", "is no list"),
        (["state_sets"], [["$create", 5]], "state_sets[0][1]", "is no event ID"),
        (["state_sets"], [[], ["$no"]], "state_sets[1][0]", "$no is not among the events"),
        (["state_sets"], [["$message"]], "state_sets[0][0]", "$message is no state event: it has no "),
    ],
)  # fmt: skip
def test_a_bad_document_is_told_where_and_why(
    path: list[str | int], value: Any, where: str, why: str
) -> None:
    document = changed(document_of(V11), path, value)

    with pytest.raises(BadDocument) as raised:
        read_room(document)

    assert raised.value.where == where
    assert raised.value.why.startswith(why)
    assert str(raised.value) == f"{where}: {raised.value.why}"


def test_a_room_has_one_create_event() -> None:
    document = document_of(V11)
    document["events"].append({**document["events"][0], "event_id": "$other"})

    with pytest.raises(BadDocument, match=r"events\[7\]: is a second create event, after events\[0\]"):
        read_room(document)


def test_a_state_set_has_one_event_for_a_key() -> None:
    room = DocumentRoom(V11)
    room.start()
    room.add("$again", "m.room.member", BOB, BOB, {"membership": "join"})

    with pytest.raises(BadDocument, match=r"state_sets\[0\]\[1\]: the set has another m.room.member with"):
        read_room(room.document(state_sets=[["$bob", "$again"]]))
    assert read_room(room.document(state_sets=[["$bob", "$bob"]])).state_sets == [
        {("m.room.member", BOB): "$bob"}
    ]


@pytest.mark.parametrize(
    ("create_content", "where", "why"),
    [
        ({"room_version": "x"}, "events[0].content.room_version", "room version 'x' is not supported"),
        ({"room_version": 5}, "events[0].content.room_version", "is no string"),
        (None, "events[0].content", "is no object"),
    ],
)
def test_a_create_event_that_names_no_known_version(create_content: Any, where: str, why: str) -> None:
    document = changed(document_of(V11), ["events", 0, "content"], create_content)
    del document["room_version"]

    with pytest.raises(BadDocument) as raised:
        read_room(document)
    assert (raised.value.where, raised.value.why.partition(";")[0]) == (where, why)


def test_where_nothing_names_the_version_it_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def known(name: str) -> RoomVersion:
        asked.append(name)
        return V11

    monkeypatch.setattr(room_documents, "room_version", known)
    document = changed(document_of(V11), ["events", 0, "content"], {"creator": ALICE})
    del document["room_version"]
    read_room(document)

    assert asked == ["1"]


def test_without_a_create_event_somebody_must_name_the_version() -> None:
    with pytest.raises(BadDocument, match="room_version: is missing, and there is no create event "):
        read_room({"events": []})


@both_versions
def test_a_create_event_without_its_state_key_is_none(version: RoomVersion) -> None:
    """The room ID of the other events may be missing where the create event says it."""
    document = changed(document_of(version), ["events", 0, "state_key"], ...)
    document["events"][0].pop("room_id", None)
    del document["events"][1]["room_id"]

    for events in (document["events"], document["events"][1:]):
        with pytest.raises(BadDocument) as raised:
            read_room({**document, "events": events})
        assert str(raised.value) == (
            "events[0].room_id: is missing, and there is no create event (m.room.create with the "
            'state_key "") to name it'
        )


@pytest.mark.parametrize("field", ["prev_events", "auth_events", "depth", "origin_server_ts"])
def test_an_event_without_an_id_is_a_whole_pdu(field: str) -> None:
    events, _ = computed_room(V11)
    del events[1][field]

    with pytest.raises(BadDocument, match=rf"events\[1\].{field}: is missing"):
        read_room({"events": events})


def test_an_event_without_an_id_has_the_format_of_its_version() -> None:
    events, _ = computed_room(V11)

    with pytest.raises(BadDocument, match=r"events\[1\]: sender: 'alice' is not a user ID"):
        read_room({"events": [events[0], {**events[1], "sender": "alice"}]})
    with pytest.raises(BadDocument, match=r"events\[1\]: hashes.sha256 is no hash"):
        read_room({"events": [events[0], {**events[1], "hashes": {}}]})
    with pytest.raises(BadDocument, match=r"events\[2\]: \$\S+ is the ID of events\[1\] too"):
        read_room({"events": [events[0], events[1], events[1]]})


@pytest.mark.parametrize(
    ("field", "references", "cycle"),
    [
        ("prev_events", ["$alice"], {"$alice"}),
        ("auth_events", ["$bob"], {"$alice", "$bob", "$levels", "$rules"}),
        ("prev_events", ["$message"], {"$alice", "$bob", "$levels", "$rules", "$topic", "$message"}),
    ],
)
def test_a_cycle_is_shown(field: str, references: list[str], cycle: set[str]) -> None:
    document = changed(document_of(V11), ["events", 1, field], references)

    with pytest.raises(BadDocument) as raised:
        read_room(document)

    says, _, shown = raised.value.why.partition(": ")
    first, *others = shown.split(" -> ")
    ids = [event["event_id"] for event in document["events"]]
    assert says == "its auth_events or prev_events lead back to it"
    assert raised.value.where == f"events[{ids.index(first)}]"
    assert others[-1] == first
    assert set(others) <= cycle


@pytest.mark.invariant("SEC-RES-1")
def test_sec_res_1_a_cycle_of_auth_events_is_no_room_to_resolve() -> None:
    document = document_of(V11, state_sets=SETS)
    document["events"][1]["auth_events"] = ["$levels"]

    with pytest.raises(BadDocument) as raised:
        read_room(document)
    assert str(raised.value) == "events[1]: its auth_events lead back to it: $alice -> $levels -> $alice"


def test_a_long_cycle_is_shown_by_its_beginning() -> None:
    room = DocumentRoom(V11)
    room.start()
    for number in range(5000):
        room.add(f"${number}", "m.room.message", ALICE)
    document = changed(room.document(), ["events", 5, "prev_events"], ["$4999"])

    with pytest.raises(BadDocument, match=r"back to it: (\$\d+ -> ){6}\.\.\.$"):
        read_room(document)


# --- JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: not JSON: Expecting value"),
        ('\n{"events": [\n  {,}]}', "line 3, column 4: not JSON: Expecting property name"),
        ('{"events": []} x', "line 1, column 16: not JSON: more follows the value"),
        ('{"events": NaN}', "not JSON: NaN"),
        ("[]", "not a JSON object"),
        ("é", "not UTF-8"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"a": 1e999}', "a number beyond the range of a double"),
        ('{"a": 1, "a": 2}', "a: a key stands twice in one object"),
        ('{"events": [{}, {"content": {"x": [], "x": 1}}]}', "events[1].content.x: a key stands twice"),
        ("[" * 200_000, "JSON nested more than 66 deep"),
        ('{"a":' * 100 + "1" + "}" * 100, "JSON nested more than 66 deep"),
        ("9" * 5000, "an integer with thousands of digits"),
    ],
)
def test_bad_json_is_told_where_and_why(text: str, message: str) -> None:
    with pytest.raises(BadDocument) as raised:
        parse_document(text.encode("latin-1"))

    assert str(raised.value).startswith(message)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with suppress(BadDocument):
        parse_document(data)


# --- No document raises anything else


@st.composite
def odd_documents(draw: st.DrawFn) -> JsonObject:
    """A document that somebody changed at one to three places."""
    if draw(st.booleans()):
        version = draw(st.sampled_from(ROOM_VERSIONS))
        document = document_of(version, **({"state_sets": deepcopy(SETS)} if draw(st.booleans()) else {}))
    else:
        document = {"events": computed_room(draw(st.sampled_from((V11, V12))))[0]}
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths(document) or [("events",)]))
        value = (
            st.just(...) | any_values() | st.sampled_from(["$create", "$alice", "m.room.create", "", ALICE])
        )
        document = changed(document, path, draw(value)) if document else document
    return document


@pytest.mark.invariant("SEC-JSON-2")
@given(odd_documents())
def test_sec_json_2_a_document_is_read_or_told_where_it_is_bad(document: JsonObject) -> None:
    with suppress(BadDocument):
        room = read_room(parse_document(json.dumps(document).encode()))
        if room.state_sets is not None:
            resolve(room.version, room.state_sets, room.events, absent=room.absent)
        else:
            replay(room.version, room.events, absent=room.absent)


def _references(room: RoomDocument) -> dict[EventId, tuple[tuple[EventId, ...], tuple[EventId, ...]]]:
    return {event.event_id: (event.prev_events, event.auth_events) for event in room.events.values()}
