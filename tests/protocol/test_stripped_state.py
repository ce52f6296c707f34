"""Stripped state of other servers: whatever comes, what clients get has the right form."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.errors import InvalidEvent
from homeserver.protocol.events import EventDraft, build_pdu
from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.stripped_state import MAX_ENTRIES, for_invitee, sort_foreign_state

V11 = ROOM_VERSIONS["11"]
ROOM_ID, ALICE, BOB = RoomId("!tea:tea.test"), UserId("@alice:tea.test"), UserId("@bob:us.test")
INVITE = build_pdu(
    V11,
    room_id=ROOM_ID,
    draft=EventDraft("m.room.member", {"membership": "invite"}, BOB),
    sender=ALICE,
    prev_events=[EventId("$a")],
    auth_events=[EventId("$b")],
    depth=3,
    origin_server_ts=1,
)
PLAIN = {"type": "m.room.name", "state_key": "", "sender": ALICE, "content": {"name": "Tea"}}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
entries = values | st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("m.room.name") | values,
        "state_key": st.text(max_size=3) | values,
        "sender": st.just(ALICE) | values,
        "content": st.dictionaries(st.text(max_size=5), values, max_size=3) | values,
        "hashes": values,
        "unsigned": values,
    },
)


@given(st.lists(entries, max_size=8) | values)
def test_whatever_another_server_sends_clients_get_stripped_events(given_entries: Any) -> None:
    foreign = sort_foreign_state(V11, given_entries)
    shown = for_invitee(V11, ROOM_ID, foreign, [None] * len(foreign.pdus), INVITE)

    assert orjson.loads(orjson.dumps(shown)) == shown
    assert shown[-1]["content"] == {"membership": "invite"}
    for event in shown:
        assert event.keys() == {"type", "state_key", "sender", "content"}
        assert all(isinstance(event[key], str) for key in ("type", "state_key", "sender"))
        assert isinstance(event["content"], dict)
    keys = [(event["type"], event["state_key"]) for event in shown]
    assert len(set(keys)) == len(keys)


def test_of_several_entries_for_one_key_the_first_counts_and_the_invite_is_the_invite() -> None:
    second = {**PLAIN, "content": {"name": "Coffee"}}
    member = {**PLAIN, "type": "m.room.member", "state_key": BOB}
    foreign = sort_foreign_state(V11, [PLAIN, second, member])
    assert for_invitee(V11, ROOM_ID, foreign, [], INVITE) == [
        PLAIN,
        {"type": "m.room.member", "state_key": BOB, "sender": ALICE, "content": {"membership": "invite"}},
    ]


def test_of_very_much_state_clients_get_what_matters_most() -> None:
    large = {**PLAIN, "type": "org.example.tea", "content": {"x": "y" * 40_000}}
    entries = [*({**large, "state_key": str(number)} for number in range(5)), PLAIN]
    create = {**PLAIN, "type": "m.room.create", "content": {"x": "y" * 60_000}}
    foreign = sort_foreign_state(V11, [*entries, create])

    shown = for_invitee(V11, ROOM_ID, foreign, [], INVITE)

    types = ["m.room.create", "m.room.name", "org.example.tea", "m.room.member"]
    assert [event["type"] for event in shown] == types


def test_what_is_in_the_format_of_events_has_to_be_checked_first() -> None:
    foreign = sort_foreign_state(V11, [{**PLAIN, "signatures": {}}, PLAIN])
    assert foreign.pdus == [{**PLAIN, "signatures": {}}]
    assert foreign.stripped == [PLAIN]


@pytest.mark.parametrize(
    "too_much", [[PLAIN] * (MAX_ENTRIES + 1), [{**PLAIN, "content": {"x": "y" * 66_000}}]]
)
def test_too_much_is_refused_in_every_version(too_much: list[Any]) -> None:
    for version in ROOM_VERSIONS.values():
        with pytest.raises(InvalidEvent):
            sort_foreign_state(version, too_much)
