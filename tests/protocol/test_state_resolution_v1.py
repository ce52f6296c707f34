"""The first state resolution, of room version 1, by its laws and by rooms whose right state is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import Any

import pytest
from hypothesis import given

from homeserver.protocol.auth_events import CREATE, JOIN_RULES, POWER_LEVELS, auth_state_keys
from homeserver.protocol.auth_rules import check_auth
from homeserver.protocol.errors import MissingEvents, NotAllowed
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.state_resolution import resolve
from tests.protocol.rooms import ALICE, BOB, MIA, ZOE, Draft, Room, join_rules, member, power_levels
from tests.strategies import ForkedRoom, forked_rooms

V1 = ROOM_VERSIONS["1"]
State = Mapping[StateKey, EventId]
TOPIC = ("m.room.topic", "")


def is_allowed(event: Pdu, state: Mapping[StateKey, Pdu]) -> bool:
    keys = auth_state_keys(V1, event.type, event.sender, event.state_key, event.content)
    try:
        check_auth(V1, event, {key: state[key] for key in keys if key in state})
    except NotAllowed:
        return False
    return True


def resolve_word_by_word(states: Sequence[State], events: Mapping[EventId, Pdu]) -> State:
    """The resolution as the specification tells it."""
    candidates: dict[StateKey, set[EventId]] = {}
    for state in states:
        for key, event_id in state.items():
            candidates.setdefault(key, set()).add(event_id)
    result = {key: events[min(ids)] for key, ids in candidates.items() if len(ids) == 1}
    conflicting = {
        key: [events[event_id] for event_id in ids] for key, ids in candidates.items() if len(ids) > 1
    }

    def digest(event: Pdu) -> int:
        return int(sha1(event.event_id.encode()).hexdigest(), 16)

    def is_of(key: StateKey, step: str) -> bool:
        return key == POWER_LEVELS if step == "m.room.power_levels" else key[0] == step

    for step in ("m.room.power_levels", "m.room.join_rules", "m.room.member"):
        settled = {}
        for key in [key for key in conflicting if is_of(key, step)]:
            ordered = sorted(conflicting.pop(key), key=lambda event: (event.depth, -digest(event)))
            kept = ordered[0]
            for event in ordered[1:]:
                if not is_allowed(event, {**result, key: kept}):
                    break
                kept = event
            settled[key] = kept
        result |= settled
    before = dict(result)
    for key, found in conflicting.items():
        ordered = sorted(found, key=lambda event: (-event.depth, digest(event)))
        result[key] = next((event for event in ordered if is_allowed(event, before)), ordered[-1])
    return {key: event.event_id for key, event in result.items()}


@pytest.mark.invariant("SEC-RES-1")
@given(forked_rooms(versions=(V1,)))
def test_sec_res_1_the_result_of_version_1_is_what_the_specification_says_word_by_word(
    room: ForkedRoom,
) -> None:
    assert resolve(V1, room.states, room.events) == resolve_word_by_word(room.states, room.events)


class Forks:
    """A room of `Room.with_members`, and what its forks make of it."""

    def __init__(self) -> None:
        self.room = Room.with_members(V1)
        self.room.put(power_levels(users={ZOE: 100, MIA: 50}), member(ALICE, "join"))
        self.base = dict(self.room.state)
        self.events = {event.event_id: event for event in self.base.values()}

    def fork(self, *drafts: Draft, depths: Sequence[int] = ()) -> dict[StateKey, EventId]:
        state = {key: event.event_id for key, event in self.base.items()}
        for index, draft in enumerate(drafts):
            event = self.room.event(draft)
            object.__setattr__(event, "depth", depths[index] if depths else 10 + index)
            self.events[event.event_id] = event
            state[event.key] = event.event_id
        return state

    def resolve(self, *states: State, **options: Any) -> dict[StateKey, Pdu]:
        resolved = resolve(V1, states, self.events, **options)
        assert resolve(V1, states[::-1], self.events, **options) == resolved
        return {key: self.events[event_id] for key, event_id in resolved.items()}


def topic(sender: str, text: str) -> Draft:
    return Draft("m.room.topic", sender, "", {"topic": text})


def test_what_only_one_fork_has_is_no_conflict_and_stays() -> None:
    forks = Forks()
    resolved = forks.resolve(forks.fork(), forks.fork(topic(BOB, "whoever said it")))
    assert resolved[TOPIC].sender == BOB


def test_the_deepest_event_that_is_allowed_wins() -> None:
    forks = Forks()
    states = [forks.fork(topic(user, user), depths=[depth]) for user, depth in ((MIA, 5), (ZOE, 7), (BOB, 9))]
    assert forks.resolve(*states)[TOPIC].sender == ZOE


def test_of_one_depth_the_event_with_the_least_hash_wins() -> None:
    forks = Forks()
    states = [forks.fork(topic(ZOE, str(number)), depths=[5]) for number in range(4)]
    least = min((state[TOPIC] for state in states), key=lambda event_id: sha1(event_id.encode()).hexdigest())
    assert forks.resolve(*states)[TOPIC].event_id == least


def test_where_no_event_is_allowed_the_shallowest_one_stays() -> None:
    forks = Forks()
    states = [forks.fork(topic(BOB, str(depth)), depths=[depth]) for depth in (7, 5, 9)]
    assert forks.resolve(*states)[TOPIC].depth == 5


def test_each_change_of_power_levels_must_be_allowed_by_the_one_before() -> None:
    forks = Forks()
    demoted = forks.fork(power_levels(users={ZOE: 100, MIA: 0}), depths=[5])
    promoted = forks.fork(power_levels(MIA, users={ZOE: 100, MIA: 50, BOB: 50}), depths=[6])
    later = forks.fork(power_levels(users={ZOE: 100}), depths=[7])

    assert forks.resolve(demoted, promoted)[POWER_LEVELS].event_id == demoted[POWER_LEVELS]
    # What comes behind the first refusal is not looked at any more.
    assert forks.resolve(demoted, promoted, later)[POWER_LEVELS].event_id == demoted[POWER_LEVELS]
    assert forks.resolve(demoted, later)[POWER_LEVELS].event_id == later[POWER_LEVELS]


def test_power_levels_are_settled_before_join_rules_and_these_before_all_else() -> None:
    forks = Forks()
    states = [
        forks.fork(power_levels(users={ZOE: 100}), topic(ZOE, "kept"), depths=[5, 5]),
        forks.fork(
            power_levels(users={ZOE: 100, MIA: 0}),
            join_rules("invite"),
            topic(MIA, "too late"),
            depths=[6, 6, 9],
        ),
    ]
    resolved = forks.resolve(*states)
    assert resolved[JOIN_RULES].content == {"join_rule": "invite"}
    assert resolved[TOPIC].content == {"topic": "kept"}


def test_events_that_cannot_be_had_or_were_rejected_have_no_say() -> None:
    forks = Forks()
    one, two = forks.fork(topic(ZOE, "one"), depths=[5]), forks.fork(topic(ZOE, "two"), depths=[6])
    assert forks.resolve(one, two, rejected={two[TOPIC]})[TOPIC].content == {"topic": "one"}
    assert TOPIC not in forks.resolve(one, two, rejected={one[TOPIC], two[TOPIC]})
    del forks.events[two[TOPIC]]
    with pytest.raises(MissingEvents) as missing:
        forks.resolve(one, two)
    assert missing.value.references == {two[TOPIC]}
    assert forks.resolve(one, two, absent={two[TOPIC]})[TOPIC].content == {"topic": "one"}


@pytest.mark.invariant("SEC-RES-1")
def test_sec_res_1_thousands_of_members_in_conflict_resolve_in_version_1() -> None:
    forks = Forks()
    people = [f"@user{number}:test" for number in range(5000)]
    first = forks.fork(*(member(person, "join") for person in people))
    second = forks.fork(*(member(person, "join", displayname="again") for person in people))
    resolved = forks.resolve(first, second)
    assert len(resolved) == len(forks.base) + len(people)
    assert resolved[CREATE] is forks.base[CREATE]
