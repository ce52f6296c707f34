"""Replaying a room: who is left out, what state it comes to, and that this is what the specification says."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol import room_replay
from homeserver.protocol.auth_events import CREATE, auth_state_keys, select_auth_events
from homeserver.protocol.auth_rules import check_against_auth_events, check_auth
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_documents import read_room
from homeserver.protocol.room_replay import Replay, replay
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.state_resolution import resolve, resolve_conflicts
from homeserver.protocol.strict_json import JsonObject
from tests.protocol.room_documents import ALICE, BOB, CARL, DocumentRoom, both_versions
from tests.protocol.rooms import V11, Draft, make_event
from tests.protocol.state_vectors import for_each_vector
from tests.strategies import ROOM_VERSIONS

PEOPLE = (ALICE, BOB, CARL, "@dave:elsewhere", "@eve:elsewhere")


def started(version: RoomVersion) -> DocumentRoom:
    room = DocumentRoom(version)
    room.start()
    return room


def replayed(room: DocumentRoom) -> Replay:
    document = read_room(room.document())
    return replay(document.version, document.events, absent=document.absent)


@for_each_vector
def test_rooms_of_other_projects_have_the_state_that_they_expect(
    document: JsonObject, expected: list[str]
) -> None:
    room = read_room(document)
    if room.state_sets is not None:
        state = resolve(room.version, room.state_sets, room.events, absent=room.absent)
    else:
        state = replay(room.version, room.events, absent=room.absent).state

    assert sorted(state.values()) == expected


# --- Who is left out


@both_versions
@pytest.mark.invariant("SEC-AUTH-3")
def test_sec_auth_3_what_the_state_before_it_does_not_allow_is_left_out(version: RoomVersion) -> None:
    room = started(version)
    allowed = room.add("$old", "m.room.topic", BOB, "", {"topic": "old"})
    room.add("$ban", "m.room.member", ALICE, BOB, {"membership": "ban"})
    room.add("$new", "m.room.topic", BOB, "", {"topic": "new"}, auth_events=allowed["auth_events"])
    room.add("$hello", "m.room.message", ALICE)
    result = replayed(room)

    assert {event_id: refusal.by for event_id, refusal in result.refused.items()} == {
        "$new": "the state before it"
    }
    assert f"{BOB} is not joined" in result.refused[EventId("$new")].why
    assert result.state["m.room.topic", ""] == "$old"
    assert result.extremities == ("$hello",)


@both_versions
@pytest.mark.invariant("SEC-AUTH-3")
def test_sec_auth_3_a_rejected_event_authorises_nothing(version: RoomVersion) -> None:
    room = started(version)
    room.add("$coup", "m.room.power_levels", BOB, "", {"users": {BOB: 100}})
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "mine"})
    result = replayed(room)

    assert {event_id: refusal.by for event_id, refusal in result.refused.items()} == {
        "$coup": "its auth events",
        "$topic": "its auth events",
    }
    assert "the auth event $coup was rejected" in result.refused[EventId("$topic")].why
    assert result.state["m.room.power_levels", ""] == "$levels"
    assert ("m.room.topic", "") not in result.state


@both_versions
def test_where_forks_meet_the_state_is_resolved(version: RoomVersion) -> None:
    room = started(version)
    room.add("$ban", "m.room.member", ALICE, BOB, {"membership": "ban"})
    room.state["m.room.member", BOB] = "$bob"
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "mine"}, after=["$bob"])
    assert replayed(room).extremities == ("$ban", "$topic")
    assert replayed(room).state["m.room.member", BOB] == "$ban"
    assert ("m.room.topic", "") not in replayed(room).state

    room.add("$join", "m.room.message", ALICE, after=["$ban", "$topic"])
    room.add("$again", "m.room.name", BOB, "", {"name": "mine"})
    result = replayed(room)

    assert list(result.refused) == ["$again"]
    assert result.extremities == ("$join",)
    assert result.state["m.room.member", BOB] == "$ban"
    assert ("m.room.topic", "") not in result.state


@both_versions
def test_what_a_resolution_takes_away_is_gone_however_long_the_fork_was(version: RoomVersion) -> None:
    room = started(version)
    room.add("$carl", "m.room.member", CARL, CARL, {"membership": "join"})
    for number in range(40):
        room.add(f"$tag{number}", "m.room.tag", ALICE, str(number))
    room.add("$closed", "m.room.join_rules", ALICE, "", {"join_rule": "invite"}, after=["$bob"])
    room.add("$join", "m.room.message", ALICE, after=["$tag39", "$closed"])
    room.add("$hello", "m.room.message", CARL)
    result = replayed(room)

    assert list(result.refused) == ["$hello"]
    assert result.refused[EventId("$hello")].by == "the state before it"
    assert ("m.room.member", CARL) not in result.state
    assert "$tag39" in result.state.values()


@both_versions
def test_a_rejected_event_is_no_extremity_and_hides_none(version: RoomVersion) -> None:
    room = started(version)
    room.add("$left", "m.room.topic", ALICE, "", {"topic": "tea"})
    room.add("$right", "m.room.name", ALICE, "", {"name": "tea"}, after=["$bob"])
    room.add("$stranger", "m.room.message", CARL, after=["$left"])
    assert replayed(room).extremities == ("$left", "$right")

    room.add("$after", "m.room.message", ALICE, after=["$stranger"])
    assert replayed(room).extremities == ("$right", "$after")
    assert {"$left", "$right"} <= set(replayed(room).state.values())


def test_a_room_without_an_accepted_create_event_has_no_state() -> None:
    room = started(V11)
    room.events[0]["room_id"] = "!room:elsewhere"
    result = replayed(room)

    assert (result.state, result.extremities) == ({}, ())
    assert list(result.refused) == ["$create", "$alice", "$levels", "$rules", "$bob"]
    assert "!room:elsewhere is not a room ID of the server of @alice:test" in (
        result.refused[EventId("$create")].why
    )


@both_versions
def test_before_an_event_without_previous_events_there_is_no_state(version: RoomVersion) -> None:
    room = started(version)
    room.add("$lost", "m.room.message", ALICE, after=[])
    result = replayed(room)

    assert list(result.refused) == ["$lost"]
    assert result.refused[EventId("$lost")].by == "the state before it"


@both_versions
def test_auth_events_that_are_absent_are_done_without(version: RoomVersion) -> None:
    room = started(version)
    room.add("$topic", "m.room.topic", BOB, "", {"topic": "tea"})["auth_events"].append("$lost")
    room.add("$other", "m.room.topic", ALICE, "", {"topic": "coffee"}, after=["$bob"])["auth_events"][-1] = (
        "$gone"
    )
    result = replayed(room)

    assert list(result.refused) == ["$other"]
    assert result.state["m.room.topic", ""] == "$topic"


# --- Big rooms


@pytest.mark.invariant("SEC-RES-1")
@both_versions
def test_sec_res_1_a_long_line_of_events_needs_no_recursion(version: RoomVersion) -> None:
    room = started(version)
    length = 3 * sys.getrecursionlimit()
    for number in range(length):
        user = f"@user{number}:test"
        room.add(f"${number}", "m.room.member", user, user, {"membership": "join"})
    result = replayed(room)

    assert len(result.state) == length + 5
    assert not result.refused


@pytest.mark.invariant("SEC-RES-2")
def test_sec_res_2_many_forks_of_a_big_room_share_its_state() -> None:
    """As dictionaries of their own the states of all forks at once would take more than a hundred MiB."""
    room = started(V11)
    for number in range(2000):
        user = f"@user{number}:test"
        room.add(f"${number}", "m.room.member", user, user, {"membership": "join"})
    forks = [f"$fork{number}" for number in range(1000)]
    for number, fork in enumerate(forks):
        room.add(fork, "m.room.tag", ALICE, str(number), {}, after=["$1999"])
    room.add("$end", "m.room.message", ALICE, after=forks)
    document = read_room(room.document())

    tracemalloc.start()
    result = replay(document.version, document.events)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(result.state) == 3005
    assert result.extremities == ("$end",)
    assert peak_bytes < 20 * 2**20


@pytest.mark.invariant("SEC-RES-2")
@pytest.mark.parametrize("way", ["beside each other", "into one"])
def test_sec_res_2_forks_that_meet_often_are_resolved_once(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages follow in two forks that differ in their state: each meeting is of the same two states."""
    resolutions = 0

    def counting(*arguments: Any, **options: Any) -> dict[StateKey, EventId | None]:
        nonlocal resolutions
        resolutions += 1
        return resolve_conflicts(*arguments, **options)

    monkeypatch.setattr(room_replay, "resolve_conflicts", counting)
    room = started(V11)
    left, right = "$name", "$right"
    room.add("$left", "m.room.topic", ALICE, "", {"topic": "tea"})
    room.add(left, "m.room.name", ALICE, "", {"name": "tea"})
    room.add(right, "m.room.topic", BOB, "", {"topic": "coffee"}, after=["$bob"])
    for number in range(20):
        room.add(f"$right{number}", "m.room.message", BOB, after=[right])
        room.add(f"$left{number}", "m.room.message", ALICE, after=[left])
        left, right = f"$left{number}", f"$right{number}"
        room.add(f"$join{number}", "m.room.message", ALICE, after=[left, right])
        if way == "into one":
            left = f"$join{number}"
    result = replayed(room)

    assert (result.state["m.room.topic", ""], result.state["m.room.name", ""]) == ("$right", "$name")
    assert resolutions == (1 if way == "beside each other" else 2)


# --- Word by word


@dataclass
class Told:
    """A random room, and what the specification says of each event, with whole states and no short cuts."""

    random: Random
    version: RoomVersion
    events: dict[EventId, Pdu] = field(default_factory=dict)
    after: dict[EventId, Mapping[StateKey, EventId]] = field(default_factory=dict)
    rejected: set[EventId] = field(default_factory=set)

    def tell(self, draft: Draft, prev_events: tuple[EventId, ...], *, is_known: bool = True) -> None:
        """Add an event; where the state before it is not known, its auth events are of some other."""
        before = self.state_after(prev_events)
        known = before if is_known else self.random.choice(list(self.after.values()))
        self.add(
            make_event(
                self.version,
                draft.type,
                draft.sender,
                draft.state_key,
                draft.content,
                room_id=next(iter(self.events.values())).room_id if self.events else None,
                prev_events=prev_events,
                auth_events=select_auth_events(
                    self.version, draft.type, draft.sender, draft.state_key, draft.content, self.pdus(known)
                ),
                origin_server_ts=len(self.events) + self.random.randint(-3, 3),
                event_id=f"${self.random.randrange(10**6):06d}{len(self.events):037d}",
            ),
            before,
        )

    def add(self, event: Pdu, before: Mapping[StateKey, EventId]) -> None:
        auth_events = [self.events[event_id] for event_id in event.auth_events]
        create = next(iter(self.events.values()), None)
        keys = auth_state_keys(self.version, event.type, event.sender, event.state_key, event.content)
        read = {key: one for key, one in self.pdus(before).items() if key in keys}
        after = dict(before)
        try:
            check_against_auth_events(self.version, event, auth_events, self.rejected, create)
            check_auth(self.version, event, read)
            if event.state_key is not None:
                after[event.key] = event.event_id
        except NotAllowed:
            self.rejected.add(event.event_id)
        self.events[event.event_id] = event
        self.after[event.event_id] = after

    def state_after(self, event_ids: tuple[EventId, ...]) -> dict[StateKey, EventId]:
        states = [self.after[event_id] for event_id in event_ids]
        return resolve(self.version, states, self.events, rejected=self.rejected)

    def pdus(self, state: Mapping[StateKey, EventId]) -> dict[StateKey, Pdu]:
        return {key: self.events[event_id] for key, event_id in state.items()}

    def extremities(self) -> set[EventId]:
        """The accepted events that no accepted one has below it, straight or through rejected ones."""
        covered: set[EventId] = set()
        for event_id, event in self.events.items():
            if event_id not in self.rejected:
                below = set(event.prev_events)
                while through := {
                    deeper
                    for one in below & self.rejected
                    for deeper in self.events[one].prev_events
                    if deeper not in below
                }:
                    below |= through
                covered |= below
        return set(self.events) - self.rejected - covered


def told_room(random: Random, version: RoomVersion) -> Told:
    """A room of five people in which every event is on one to three earlier ones, and not all are allowed."""
    room = Told(random, version)
    users = {BOB: 50} if version.privileged_creators else {ALICE: 100, BOB: 50}
    room.tell(Draft("m.room.create", ALICE, "", {"room_version": version.version, "creator": ALICE}), ())
    for draft in (
        Draft("m.room.member", ALICE, ALICE, {"membership": "join"}),
        Draft("m.room.power_levels", ALICE, "", {"users": users}),
        Draft("m.room.join_rules", ALICE, "", {"join_rule": "public"}),
        *(Draft("m.room.member", user, user, {"membership": "join"}) for user in PEOPLE[1:4]),
        *(Draft("m.room.tag", ALICE, str(number)) for number in range(8)),
    ):
        room.tell(draft, (list(room.events)[-1],))
    for _ in range(random.randint(1, 25)):
        tips = random.sample(list(room.events)[-6:], k=random.choice((1, 1, 1, 2, 3)))
        room.tell(_random_draft(random, room), tuple(tips), is_known=random.random() < 0.9)
    return room


def _random_draft(random: Random, room: Told) -> Draft:
    sender, target = random.choice(PEOPLE), random.choice(PEOPLE)
    match random.choice(("member", "member", "join", "levels", "levels", "rules", "tag", "tag", "message")):
        case "member":
            membership = random.choice(("invite", "leave", "ban", "ban"))
            return Draft("m.room.member", sender, target, {"membership": membership})
        case "join":
            return Draft("m.room.member", sender, sender, {"membership": "join"})
        case "levels":
            levels = {user: random.choice((0, 50, 100)) for user in random.sample(PEOPLE[1:], k=2)}
            alice = {} if room.version.privileged_creators else {ALICE: 100}
            return Draft("m.room.power_levels", sender, "", {"users": {**alice, **levels}})
        case "rules":
            return Draft("m.room.join_rules", sender, "", {"join_rule": random.choice(("public", "invite"))})
        case "tag":
            return Draft("m.room.tag", sender, str(random.randrange(20)))
        case _:
            return Draft("m.room.message", sender)


@pytest.mark.invariant("SEC-RES-1")
@given(st.randoms(use_true_random=False), st.sampled_from(ROOM_VERSIONS))
def test_sec_res_1_a_replay_is_what_the_specification_says_word_by_word(
    random: Random, version: RoomVersion
) -> None:
    room = told_room(random, version)
    result = replay(version, room.events)

    assert set(result.refused) == room.rejected
    assert set(result.extremities) == room.extremities()
    assert result.state == room.state_after(result.extremities)
    assert result.state[CREATE] == next(iter(room.events))
