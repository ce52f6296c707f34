"""State resolution by its laws, and by rooms whose right state is known."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.auth_events import CREATE, POWER_LEVELS, auth_state_keys
from homeserver.protocol.auth_rules import check_auth
from homeserver.protocol.errors import MissingEvents, NotAllowed
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.power_levels import PowerLevels
from homeserver.protocol.room_versions import RoomVersion, StateResolution
from homeserver.protocol.state_resolution import (
    AuthGraph,
    Ref,
    auth_difference,
    conflicted_state_subgraph,
    find_conflicts,
    find_overlay_conflicts,
    resolve,
    resolve_conflicts,
)
from homeserver.protocol.state_resolution.auth_graph import auth_graph_of
from tests.protocol.rooms import V11, V12, create_content_of, make_event
from tests.strategies import ROOM_VERSIONS, ForkedRoom, forked_rooms

State = Mapping[StateKey, EventId]

SINCE_V2: Final = tuple(one for one in ROOM_VERSIONS if one.state_resolution is not StateResolution.V1)
since_v2 = pytest.mark.parametrize("version", SINCE_V2, ids=lambda version: version.version)


# --- Laws


@pytest.mark.invariant("SEC-RES-1")
@given(forked_rooms(), st.randoms(use_true_random=False))
def test_sec_res_1_the_order_in_which_forks_arrive_does_not_matter(room: ForkedRoom, random: Random) -> None:
    shuffled = random.sample(room.states, k=len(room.states))
    resolved = resolve(room.version, room.states, room.events)

    assert resolve(room.version, shuffled, room.events) == resolved


@pytest.mark.invariant("SEC-RES-1")
@given(forked_rooms())
def test_sec_res_1_a_fork_that_is_named_twice_changes_nothing(room: ForkedRoom) -> None:
    twice = (*room.states, room.states[0], dict(room.states[-1]))

    assert resolve(room.version, twice, room.events) == resolve(room.version, room.states, room.events)


@pytest.mark.invariant("SEC-RES-1")
@given(forked_rooms())
def test_sec_res_1_one_state_or_equal_ones_stay_what_they_are(room: ForkedRoom) -> None:
    for state in (*room.states, resolve(room.version, room.states, room.events)):
        assert resolve(room.version, [state], {}) == state
        assert resolve(room.version, [state, dict(state), state], {}) == state


@pytest.mark.invariant("SEC-RES-1")
@given(forked_rooms(versions=SINCE_V2))
def test_sec_res_1_the_result_is_what_the_specification_says_word_by_word(room: ForkedRoom) -> None:
    resolved, _ = _resolve_word_by_word(room)

    assert resolve(room.version, room.states, room.events) == resolved


@pytest.mark.invariant("SEC-RES-1")
@given(forked_rooms(versions=SINCE_V2))
def test_sec_res_1_all_that_was_in_conflict_passed_the_auth_rules(room: ForkedRoom) -> None:
    """The auth rules hold for each event at its turn, not for the resolved state as a whole.

    In the final state even the right event may be forbidden: who set the topic and then left could not set
    it now. So the law is about the moment when an event was replayed: what the result has of the conflict
    was allowed by the state that the replay had reached. All else is in every fork.
    """
    resolved = resolve(room.version, room.states, room.events)
    _, states_at_their_turn = _resolve_word_by_word(room)
    for key, event_id in resolved.items():
        if not all(state.get(key) == event_id for state in room.states):
            check_auth(room.version, room.events[event_id], states_at_their_turn[event_id])


@given(forked_rooms())
def test_every_fork_with_a_create_event_keeps_it(room: ForkedRoom) -> None:
    assert resolve(room.version, room.states, room.events)[CREATE] == room.states[0][CREATE]


@given(forked_rooms(), st.randoms(use_true_random=False))
def test_short_numbers_resolve_as_event_ids_do(room: ForkedRoom, random: Random) -> None:
    numbers = {
        event_id: number for number, event_id in enumerate(random.sample(list(room.events), len(room.events)))
    }
    graph: AuthGraph[int] = AuthGraph()
    for event_id, event in room.events.items():
        auth_events = [numbers[auth_event] for auth_event in event.auth_events]
        graph.add(numbers[event_id], auth_events, is_power_levels=event.type == "m.room.power_levels")
    events = {numbers[event_id]: event for event_id, event in room.events.items()}
    states = [{key: numbers[event_id] for key, event_id in state.items()} for state in room.states]

    changes = resolve_conflicts(room.version, find_conflicts(room.version, states, graph), events, graph)

    resolved = resolve(room.version, room.states, room.events)
    assert _changed(states[0], changes) == {key: numbers[event_id] for key, event_id in resolved.items()}


@given(forked_rooms(), st.randoms(use_true_random=False))
def test_forks_told_by_what_they_change_resolve_as_whole_states_do(room: ForkedRoom, random: Random) -> None:
    base: dict[StateKey, EventId] = {}
    for event in random.sample(list(room.events.values()), len(room.events) // 2):
        base[event.key] = event.event_id
    overlays: list[dict[StateKey, EventId | None]] = []
    for state in room.states:
        keys = [*state, *base]
        overlays.append({key: state.get(key) for key in keys if state.get(key) != base.get(key)})
    graph = auth_graph_of(room.events)

    conflicts = find_overlay_conflicts(room.version, base, overlays, graph)
    changes = resolve_conflicts(room.version, conflicts, room.events, graph)

    assert _changed(base, changes) == resolve(room.version, room.states, room.events)
    assert all(base.get(key) != event_id for key, event_id in changes.items())


@given(forked_rooms())
def test_two_rounds_of_loading_are_enough(room: ForkedRoom) -> None:
    graph = auth_graph_of(room.events)
    conflicts = find_conflicts(room.version, room.states, graph)
    loaded: dict[EventId, Pdu] = {}
    for _ in range(2):
        missing = _missing(lambda: resolve_conflicts(room.version, conflicts, loaded, graph))
        assert missing.isdisjoint(loaded)
        loaded.update((event_id, event) for event_id, event in room.events.items() if event_id in missing)

    changes = resolve_conflicts(room.version, conflicts, loaded, graph)

    assert _changed(room.states[0], changes) == resolve(room.version, room.states, room.events)


@pytest.mark.invariant("SEC-RES-1")
@given(forked_rooms(), st.randoms(use_true_random=False))
def test_sec_res_1_missing_events_are_named_and_can_be_done_without(room: ForkedRoom, random: Random) -> None:
    lost = set(random.sample(list(room.events), k=random.randint(1, 4)))
    events = {event_id: event for event_id, event in room.events.items() if event_id not in lost}

    missing = _missing(lambda: resolve(room.version, room.states, events))
    assert missing <= lost
    absent = {event_id for event_id in lost if event_id in missing}
    resolved = resolve(room.version, room.states, events, absent=absent)

    assert resolve(room.version, room.states[::-1], events, absent=absent) == resolved


@pytest.mark.invariant("SEC-RES-1")
def test_sec_res_1_every_process_arrives_at_the_same_state() -> None:
    program = (
        "from random import Random\n"
        "from homeserver.protocol.state_resolution import resolve\n"
        "from tests.strategies import ROOM_VERSIONS, random_forked_room\n"
        "for seed in range(40):\n"
        "    for version in ROOM_VERSIONS:\n"
        "        room = random_forked_room(Random(seed), version)\n"
        "        print(sorted(resolve(version, room.states, room.events).items()))\n"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("0", "1", "4242")
    ]
    assert printed[0].count(b"\n") == 40 * len(ROOM_VERSIONS)
    assert printed[1:] == [printed[0], printed[0]]


# --- The auth graph


@dataclass(frozen=True)
class Nodes:
    """An auth graph of numbers, and states as sets of them."""

    auth_events: Mapping[int, tuple[int, ...]]
    states: tuple[frozenset[int], ...]

    def graph(self, order: Iterable[int] | None = None) -> AuthGraph[int]:
        graph: AuthGraph[int] = AuthGraph()
        for node in self.auth_events if order is None else order:
            graph.add(node, self.auth_events[node], is_power_levels=False)
        return graph

    def chain(self, node: int) -> set[int]:
        below = set(self.auth_events[node])
        return below.union(*(self.chain(auth_event) for auth_event in below))


@st.composite
def nodes(draw: st.DrawFn) -> Nodes:
    count = draw(st.integers(1, 14))
    auth_events = {
        node: tuple(sorted(draw(st.sets(st.integers(0, node - 1), max_size=3)))) if node else ()
        for node in range(count)
    }
    subsets = st.frozensets(st.integers(0, count - 1))
    common = draw(subsets)
    states = draw(st.lists(subsets, min_size=1, max_size=4))
    return Nodes(auth_events, tuple(state | common for state in states))


@given(nodes())
def test_the_auth_difference_is_all_chains_together_less_what_they_share(room: Nodes) -> None:
    common = frozenset.intersection(*room.states)

    difference = auth_difference(room.graph(), [state - common for state in room.states], common)

    chains: list[set[int]] = [set().union(*(room.chain(node) for node in state)) for state in room.states]
    assert difference == chains[0].union(*chains) - chains[0].intersection(*chains)


@given(nodes())
def test_the_conflicted_subgraph_is_all_paths_between_conflicted_events(room: Nodes) -> None:
    conflicted = frozenset.union(*room.states) - frozenset.intersection(*room.states)

    subgraph = conflicted_state_subgraph(room.graph(), conflicted)

    on_a_path = {
        node
        for start in conflicted
        for node in {start} | room.chain(start)
        if not conflicted.isdisjoint(room.chain(node))
    }
    assert subgraph | conflicted == on_a_path | conflicted


@given(nodes(), st.randoms(use_true_random=False))
def test_auth_depth_is_that_of_the_chain_in_whatever_order_events_came(room: Nodes, random: Random) -> None:
    def depth(node: int) -> int:
        return 1 + max((depth(auth_event) for auth_event in room.auth_events[node]), default=0)

    graph = room.graph(random.sample(list(room.auth_events), len(room.auth_events)))

    assert {node: graph.auth_depth(node) for node in room.auth_events} == {
        node: depth(node) for node in room.auth_events
    }


def test_an_event_that_was_not_added_counts_as_one_without_auth_events() -> None:
    graph: AuthGraph[str] = AuthGraph()
    graph.add("join", ["create"], is_power_levels=False)

    assert (graph.auth_depth("create"), graph.auth_depth("join")) == (0, 1)
    assert graph.auth_chain(["join"]) == {"create"}
    assert ("create" in graph, "join" in graph, len(graph)) == (False, True, 1)

    graph.add("create", [], is_power_levels=False)
    graph.add("join", ["other"], is_power_levels=True)

    assert (graph.auth_depth("create"), graph.auth_depth("join")) == (1, 2)
    assert graph.power_levels_of("join") is None


@pytest.mark.invariant("SEC-RES-2")
def test_sec_res_2_a_walk_meets_each_event_once_however_many_paths_lead_to_it() -> None:
    layers = 2000
    auth_events = {node: (node // 2 * 2 - 2, node // 2 * 2 - 1) for node in range(2, 2 * layers)}
    ladder = Nodes({0: (), 1: (), **auth_events}, ())
    graph = ladder.graph()
    top = 2 * layers - 1

    assert len(graph) == len(graph.auth_chain([top])) + 2
    assert graph.auth_depth(top) == layers
    assert auth_difference(graph, [{top}, {2}], set()) == set(range(2, 2 * layers - 2))
    assert auth_difference(graph, [{top}, {2}], {top - 1}) == set()
    assert conflicted_state_subgraph(graph, {0, top}) | {0} == set(range(2, 2 * layers - 2)) | {0, top}


@pytest.mark.invariant("SEC-RES-1")
@since_v2
def test_sec_res_1_cycles_of_auth_events_come_to_an_end(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    topics = [room.say("@alice:test", "m.room.topic", "", {"topic": name}, store=False) for name in "ab"]
    levels = [
        room.say("@alice:test", "m.room.power_levels", "", {"users": {}, "ban": level}, store=False)
        for level in (50, 51)
    ]
    for one, other in (levels, levels[::-1], (topics[0], levels[0]), (topics[1], levels[1])):
        object.__setattr__(one, "auth_events", (*one.auth_events, other.event_id))
        room.events[one.event_id] = one
    states = [room.state_with(topics[0], levels[0]), room.state_with(topics[1], levels[1])]

    resolved = resolve(version, states, room.events)

    assert resolved[CREATE] == states[0][CREATE]
    assert POWER_LEVELS not in resolved


@pytest.mark.invariant("SEC-RES-1")
@since_v2
def test_sec_res_1_long_auth_chains_need_no_recursion(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    ancestor = room.state_ids()
    for level in range(3 * sys.getrecursionlimit()):
        room.say(
            "@alice:test", "m.room.power_levels", "", {"users": {"@bob:test": 50}, "kick": 50 + level % 2}
        )
    room.say("@bob:test", "m.room.topic", "", {"topic": "the end"})

    resolved = resolve(version, [ancestor, room.state_ids()], room.events)

    assert resolved == room.state_ids()


@pytest.mark.invariant("SEC-RES-1")
@since_v2
def test_sec_res_1_thousands_of_members_in_conflict_resolve(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    ancestor = room.state_ids()
    people = [f"@user{number}:test" for number in range(2500)]
    for person in people:
        room.say(person, "m.room.member", person, {"membership": "join"})
    joined = room.state_ids()
    room.state = {key: event for key, event in room.state.items() if event.event_id in ancestor.values()}
    for person in people:
        room.say(person, "m.room.member", person, {"membership": "join", "displayname": "again"})

    resolved = resolve(version, [joined, room.state_ids()], room.events)

    assert resolved == room.state_ids()


# --- Rooms whose right state is known


class Script:
    """A room that is told event by event; a later timestamp for each unless one is given."""

    def __init__(self, version: RoomVersion) -> None:
        self.version = version
        self.events: dict[EventId, Pdu] = {}
        self.state: dict[StateKey, Pdu] = {}
        self.numbers = count()
        self.newest: tuple[EventId, ...] = ()

    def start(self) -> None:
        """Alice, its creator, made the room, which everyone may join. Bob is there and has level 50."""
        self.say("@alice:test", "m.room.create", "", create_content_of(self.version))
        self.say("@alice:test", "m.room.member", "@alice:test", {"membership": "join"})
        self.say("@alice:test", "m.room.power_levels", "", {"users": self.users({"@bob:test": 50})})
        self.say("@alice:test", "m.room.join_rules", "", {"join_rule": "public"})
        self.say("@bob:test", "m.room.member", "@bob:test", {"membership": "join"})

    def users(self, others: Mapping[str, int]) -> dict[str, int]:
        """These levels and that of Alice, where she has to have one."""
        return dict(others) if self.version.privileged_creators else {"@alice:test": 100, **others}

    def say(
        self,
        sender: str,
        event_type: str,
        state_key: str,
        content: dict[str, Any],
        *,
        at: int | None = None,
        name: str | None = None,
        store: bool = True,
    ) -> Pdu:
        """An event in the state so far, its auth events included; no rule is checked."""
        if event_type == "m.room.power_levels" and "users" in content:
            content = {**content, "users": self.users(content["users"])}
        number = next(self.numbers)
        keys = auth_state_keys(self.version, event_type, sender, state_key, content)
        if self.version.room_id_is_create_hash:
            keys = keys[1:]
        event = make_event(
            self.version,
            event_type,
            sender,
            state_key,
            content,
            room_id=self.state[CREATE].room_id if CREATE in self.state else None,
            prev_events=self.newest,
            auth_events=tuple(self.state[key].event_id for key in keys if key in self.state),
            origin_server_ts=number if at is None else at,
            event_id=f"${name or number:0>43}",
        )
        if store:
            self.newest = (event.event_id,)
            self.events[event.event_id] = event
            self.state[event.key] = event
        return event

    def state_ids(self) -> dict[StateKey, EventId]:
        return {key: event.event_id for key, event in self.state.items()}

    def state_with(self, *events: Pdu) -> dict[StateKey, EventId]:
        """The state so far with these events in it."""
        return {**self.state_ids(), **{event.key: event.event_id for event in events}}

    def forks(self, *forks: Sequence[tuple[str, str, str, dict[str, Any]]]) -> list[dict[StateKey, EventId]]:
        """Tell several continuations of the room, and return the state at the end of each."""
        before = dict(self.state)
        states = []
        for fork in forks:
            self.state = dict(before)
            for sender, event_type, state_key, content in fork:
                self.say(sender, event_type, state_key, content)
            states.append(self.state_ids())
        self.state = before
        return states

    def resolve(self, states: Sequence[State], **options: Any) -> dict[StateKey, Pdu]:
        """The resolved state, which is the same for every order of the forks."""
        resolved = resolve(self.version, states, self.events, **options)
        assert resolve(self.version, states[::-1], self.events, **options) == resolved
        return {key: self.events[event_id] for key, event_id in resolved.items()}


def _topic(sender: str, topic: str) -> tuple[str, str, str, dict[str, Any]]:
    return sender, "m.room.topic", "", {"topic": topic}


def _member(sender: str, target: str, membership: str) -> tuple[str, str, str, dict[str, Any]]:
    return sender, "m.room.member", target, {"membership": membership}


def _levels(sender: str, users: dict[str, int], **content: int) -> tuple[str, str, str, dict[str, Any]]:
    return sender, "m.room.power_levels", "", {"users": users, **content}


def _join_rule(sender: str, join_rule: str) -> tuple[str, str, str, dict[str, Any]]:
    return sender, "m.room.join_rules", "", {"join_rule": join_rule}


TOPIC: Final = ("m.room.topic", "")
JOIN_RULES: Final = ("m.room.join_rules", "")


@since_v2
def test_a_ban_undoes_what_the_banned_user_did_meanwhile(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    room.say(*_topic("@alice:test", "before"))
    states = room.forks(
        [_topic("@bob:test", "meanwhile"), _levels("@bob:test", {"@bob:test": 50, "@carol:test": 50})],
        [_member("@alice:test", "@bob:test", "ban")],
    )

    resolved = room.resolve(states)

    assert resolved["m.room.member", "@bob:test"].membership == "ban"
    assert resolved[TOPIC].content == {"topic": "before"}
    assert "@carol:test" not in resolved[POWER_LEVELS].content["users"]


@since_v2
def test_a_demotion_wins_over_a_change_by_the_demoted_user(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    states = room.forks(
        [_levels("@bob:test", {"@bob:test": 50, "@carol:test": 50}), _topic("@bob:test", "mine")],
        [_levels("@alice:test", {"@bob:test": 0})],
    )

    resolved = room.resolve(states)

    assert resolved[POWER_LEVELS].content["users"]["@bob:test"] == 0
    assert TOPIC not in resolved


@since_v2
def test_a_room_that_was_closed_meanwhile_has_no_new_member(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    states = room.forks(
        [_member("@eve:test", "@eve:test", "join")],
        [_join_rule("@alice:test", "invite")],
    )

    resolved = room.resolve(states)

    assert resolved[JOIN_RULES].content == {"join_rule": "invite"}
    assert ("m.room.member", "@eve:test") not in resolved


@since_v2
def test_what_does_not_conflict_is_kept_from_all_forks(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    states = room.forks(
        [_member("@carol:test", "@carol:test", "join")],
        [_member("@dave:test", "@dave:test", "join"), _topic("@bob:test", "tea")],
    )

    resolved = room.resolve(states)

    assert {("m.room.member", "@carol:test"), ("m.room.member", "@dave:test"), TOPIC} <= resolved.keys()


@since_v2
def test_of_equal_power_the_later_change_wins(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    states = room.forks([_join_rule("@bob:test", "invite")], [_join_rule("@bob:test", "knock")])

    assert room.resolve(states)[JOIN_RULES].content == {"join_rule": "knock"}


@since_v2
def test_at_the_same_time_the_greater_event_id_by_code_point_wins(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    upper = room.say("@bob:test", "m.room.join_rules", "", {"join_rule": "invite"}, at=99, name="Z")
    states = [room.state_ids()]
    lower = room.say("@bob:test", "m.room.join_rules", "", {"join_rule": "knock"}, at=99, name="a")
    states.append(room.state_ids())
    assert upper.event_id < lower.event_id

    assert room.resolve(states)[JOIN_RULES].content == {"join_rule": "knock"}


def test_a_creator_comes_before_any_level() -> None:
    room = Script(V12)
    room.start()
    room.say(*_levels("@alice:test", {"@bob:test": 2**53 - 1}))
    states = room.forks([_join_rule("@bob:test", "knock")], [_join_rule("@alice:test", "invite")])

    # Later in the order means applied later: the less powerful one's change stays where both are allowed.
    assert room.resolve(states)[JOIN_RULES].content == {"join_rule": "knock"}


@since_v2
def test_events_without_power_levels_come_before_those_of_the_oldest_mainline_event(
    version: RoomVersion,
) -> None:
    room = Script(version)
    room.say("@alice:test", "m.room.create", "", create_content_of(version))
    room.say("@alice:test", "m.room.member", "@alice:test", {"membership": "join"})
    before_any = room.say("@alice:test", "m.room.topic", "", {"topic": "no levels yet"}, at=1000)
    old_fork = room.state_ids()
    del room.state[TOPIC]
    room.say(*_levels("@alice:test", {}))
    with_levels = room.say("@alice:test", "m.room.topic", "", {"topic": "levels"}, at=500)

    resolved = room.resolve([old_fork, room.state_ids()])

    assert before_any.origin_server_ts > with_levels.origin_server_ts
    assert resolved[TOPIC] is with_levels


@since_v2
def test_the_topic_under_the_newer_power_levels_wins_whatever_its_clock_says(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    room.say("@bob:test", "m.room.topic", "", {"topic": "old levels"}, at=1000)
    old_fork = room.state_ids()
    room.say(*_levels("@alice:test", {"@bob:test": 60}))
    newer = room.say("@bob:test", "m.room.topic", "", {"topic": "new levels"}, at=5)

    assert room.resolve([old_fork, room.state_ids()])[TOPIC] is newer


@since_v2
def test_what_no_fork_is_allowed_to_have_is_gone(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    bob = room.state["m.room.member", "@bob:test"]
    states = room.forks(
        [_topic("@bob:test", "one"), _member("@alice:test", "@bob:test", "ban")],
        [_topic("@bob:test", "two"), _member("@alice:test", "@bob:test", "ban")],
    )

    resolved = room.resolve(states)

    assert resolved["m.room.member", "@bob:test"] is not bob
    assert TOPIC not in resolved


@since_v2
def test_an_event_that_its_auth_events_condemned_never_wins_nor_authorises(version: RoomVersion) -> None:
    room = Script(version)
    room.start()
    states = room.forks(
        [_levels("@bob:test", {"@bob:test": 50, "@carol:test": 50}), _topic("@bob:test", "forged")],
        [_topic("@alice:test", "true")],
    )
    forged_levels = states[0][POWER_LEVELS]
    forged_topic = states[0][TOPIC]

    assert room.resolve(states)[POWER_LEVELS].event_id == forged_levels
    resolved = room.resolve(states, rejected={forged_levels, forged_topic})

    assert resolved[POWER_LEVELS].event_id == states[1][POWER_LEVELS]
    assert resolved[TOPIC].content == {"topic": "true"}


@since_v2
def test_events_of_another_room_are_left_out(version: RoomVersion) -> None:
    room, other = Script(version), Script(version)
    room.start()
    other.say("@alice:test", "m.room.create", "", create_content_of(version), name="other")
    other.say("@alice:test", "m.room.member", "@alice:test", {"membership": "join"}, name="join")
    topic = other.say("@alice:test", "m.room.topic", "", {"topic": "of another room"}, name="topic")
    states = [room.state_ids(), room.state_with(topic)]
    room.events.update(other.events)

    assert TOPIC not in room.resolve(states)


def test_no_states_resolve_to_no_state() -> None:
    assert resolve(V11, [], {}) == {}


@since_v2
def test_a_state_without_a_create_event_is_outvoted_by_the_rules(version: RoomVersion) -> None:
    room = Script(version)
    room.start()

    assert room.resolve([{}, room.state_ids()]).keys() == room.state.keys()


def test_in_version_12_the_create_event_is_found_through_the_room_id() -> None:
    room = Script(V12)
    room.start()
    states = room.forks([_topic("@alice:test", "one")], [_topic("@alice:test", "two")])
    for state in states:
        del state[CREATE]

    assert room.resolve(states)[TOPIC].content == {"topic": "two"}


# --- State resets that version 2.1 ended
# Facts: matrix-spec-proposals 4297 (the Hydra project; CVE-2025-49090), problems A and B.


def _hydra_room(version: RoomVersion) -> Script:
    room = Script(version)
    room.say("@alice:test", "m.room.create", "", create_content_of(version))
    room.say("@alice:test", "m.room.member", "@alice:test", {"membership": "join"})
    room.say("@alice:test", "m.room.power_levels", "", {"users": {}})
    room.say("@alice:test", "m.room.join_rules", "", {"join_rule": "public"})
    room.say("@bob:test", "m.room.member", "@bob:test", {"membership": "join"})
    room.say("@charlie:test", "m.room.member", "@charlie:test", {"membership": "join"})
    return room


def _problem_a(version: RoomVersion) -> tuple[Script, list[State]]:
    """Alice closes the room and leaves. Charlie's server then got a state with the old join rules in it."""
    room = _hydra_room(version)
    public = room.state[JOIN_RULES]
    room.say("@alice:test", "m.room.join_rules", "", {"join_rule": "invite"})
    room.say("@alice:test", "m.room.member", "@alice:test", {"membership": "leave"})
    here = dict(room.state)
    room.say("@bob:test", "m.room.member", "@bob:test", {"membership": "join", "displayname": "bob++"})
    at_bobs = room.state_ids()
    room.state = here
    room.say("@charlie:test", "m.room.member", "@charlie:test", {"membership": "join", "displayname": "c++"})
    return room, [at_bobs, room.state_with(public)]


def _problem_b(version: RoomVersion) -> tuple[Script, list[State]]:
    """Alice promotes Bob, who promotes Charlie. Eve's server then got a state with the first power levels."""
    room = _hydra_room(version)
    first_levels = room.state[POWER_LEVELS]
    room.say(*_levels("@alice:test", {"@bob:test": 50}))
    room.say(*_levels("@bob:test", {"@bob:test": 50, "@charlie:test": 50}))
    here = dict(room.state)
    room.say("@zara:test", "m.room.member", "@zara:test", {"membership": "join"})
    at_zaras = room.state_ids()
    room.state = here
    room.say("@eve:test", "m.room.member", "@eve:test", {"membership": "join"})
    room.say("@eve:test", "m.room.member", "@eve:test", {"membership": "join", "displayname": "eve++"})
    return room, [at_zaras, room.state_with(first_levels)]


@pytest.mark.invariant("SEC-RES-1")
def test_sec_res_1_hydra_a_the_join_rules_survive_that_their_sender_left() -> None:
    room, states = _problem_a(V12)
    resolved = room.resolve(states)

    assert resolved[JOIN_RULES].content == {"join_rule": "invite"}
    assert resolved["m.room.member", "@alice:test"].membership == "leave"
    assert resolved["m.room.member", "@bob:test"].content["displayname"] == "bob++"
    assert resolved["m.room.member", "@charlie:test"].content["displayname"] == "c++"


def test_hydra_a_resets_the_join_rules_in_version_11_as_its_specification_has_it() -> None:
    room, states = _problem_a(V11)
    resolved = room.resolve(states)

    assert JOIN_RULES not in resolved
    assert resolved["m.room.member", "@bob:test"].content["displayname"] == "bob++"
    assert resolved["m.room.member", "@charlie:test"].content["displayname"] == "c++"


@pytest.mark.invariant("SEC-RES-1")
def test_sec_res_1_hydra_b_the_newest_power_levels_survive_an_old_state() -> None:
    room, states = _problem_b(V12)
    resolved = room.resolve(states)

    assert resolved[POWER_LEVELS].content["users"] == {"@bob:test": 50, "@charlie:test": 50}
    assert {("m.room.member", "@eve:test"), ("m.room.member", "@zara:test")} <= resolved.keys()


def test_hydra_b_resets_the_power_levels_in_version_11_as_its_specification_has_it() -> None:
    room, states = _problem_b(V11)

    assert room.resolve(states)[POWER_LEVELS].content["users"] == {"@alice:test": 100}


@pytest.mark.invariant("SEC-RES-1")
def test_sec_res_1_hydra_survives_250_changes_and_a_state_from_the_middle() -> None:
    """As a peer does that makes a server ask it for the state behind a gap."""
    room = _hydra_room(V12)
    public = room.state[JOIN_RULES]
    room.say("@alice:test", "m.room.join_rules", "", {"join_rule": "invite"})
    room.say("@alice:test", "m.room.member", "@alice:test", {"membership": "leave"})
    before_the_gap = room.state_ids()
    for number in range(250):
        content = {"membership": "join", "displayname": f"Charlie {number}"}
        room.say("@charlie:test", "m.room.member", "@charlie:test", content)

    resolved = room.resolve([before_the_gap, room.state_with(public)])

    assert resolved[JOIN_RULES].content == {"join_rule": "invite"}
    assert resolved["m.room.member", "@charlie:test"].content["displayname"] == "Charlie 249"


# --- The specification, word by word


def _resolve_word_by_word(room: ForkedRoom) -> tuple[State, dict[EventId, dict[StateKey, Pdu]]]:
    """The resolution as the specification tells it, slowly; with the states in which events were allowed."""
    version, events = room.version, room.events
    is_v2_1 = version is V12

    def chain(event_id: EventId) -> set[EventId]:
        below = set(events[event_id].auth_events)
        return below.union(*(chain(auth_event) for auth_event in below))

    keys = {key for state in room.states for key in state}
    unconflicted: dict[StateKey, EventId] = {}
    conflicted: set[EventId] = set()
    for key in keys:
        values = {state.get(key) for state in room.states}
        value = next(iter(values))
        if len(values) == 1 and value is not None:
            unconflicted[key] = value
        else:
            conflicted.update(value for value in values if value is not None)
    if not conflicted:
        return unconflicted, {}

    chains: list[set[EventId]] = [
        set().union(*(chain(event_id) for event_id in state.values())) for state in room.states
    ]
    full: set[EventId] = conflicted | (chains[0].union(*chains) - chains[0].intersection(*chains))
    if is_v2_1:
        full |= {
            event_id
            for start in conflicted
            for event_id in chain(start)
            if not conflicted.isdisjoint(chain(event_id))
        }

    def is_power_event(event: Pdu) -> bool:
        if event.type == "m.room.member":
            return event.membership in ("leave", "ban") and event.sender != event.state_key
        return event.type in ("m.room.power_levels", "m.room.join_rules", "m.room.create")

    first = {event_id for event_id in full if is_power_event(events[event_id])}
    while (
        more := {below for event_id in first for below in events[event_id].auth_events if below in full}
        - first
    ):
        first |= more

    create = next(event for event in events.values() if event.type == "m.room.create")

    def own_auth_events(event: Pdu) -> dict[StateKey, Pdu]:
        own = {events[event_id].key: events[event_id] for event_id in event.auth_events}
        return {**own, CREATE: create}

    def power_rank(event_id: EventId) -> tuple[int, int, str]:
        event = events[event_id]
        levels = PowerLevels.of(version, create, own_auth_events(event).get(POWER_LEVELS))
        return -levels.user_level(event.sender), event.origin_server_ts, event_id

    ordered: list[EventId] = []
    while left := first.difference(ordered):
        ordered.append(min((e for e in left if left.isdisjoint(events[e].auth_events)), key=power_rank))

    at_their_turn: dict[EventId, dict[StateKey, Pdu]] = {}

    def apply(state: dict[StateKey, EventId], order: Collection[EventId]) -> None:
        for event_id in order:
            event = events[event_id]
            read = auth_state_keys(version, event.type, event.sender, event.state_key, event.content)
            found = own_auth_events(event) | {key: events[state[key]] for key in read if key in state}
            before = {key: found[key] for key in read if key in found}
            try:
                check_auth(version, event, before)
            except NotAllowed:
                continue
            state[event.key] = event_id
            at_their_turn[event_id] = before

    def power_levels_of(event_id: EventId) -> EventId | None:
        return next(
            (e for e in events[event_id].auth_events if events[e].type == "m.room.power_levels"), None
        )

    state = {} if is_v2_1 else dict(unconflicted)
    apply(state, ordered)
    mainline: list[EventId] = []
    ancestor = state.get(POWER_LEVELS)
    while ancestor is not None:
        mainline.append(ancestor)
        ancestor = power_levels_of(ancestor)

    def mainline_rank(event_id: EventId) -> tuple[float, int, str]:
        ancestor = power_levels_of(event_id)
        while ancestor is not None and ancestor not in mainline:
            ancestor = power_levels_of(ancestor)
        position = float("inf") if ancestor is None else mainline.index(ancestor)
        return -position, events[event_id].origin_server_ts, event_id

    apply(state, sorted(full - first, key=mainline_rank))
    return {**state, **unconflicted}, at_their_turn


def _changed(base: Mapping[StateKey, Ref], changes: Mapping[StateKey, Ref | None]) -> dict[StateKey, Ref]:
    merged = {**base, **changes}
    return {key: ref for key, ref in merged.items() if ref is not None}


def _missing(resolution: Callable[[], object]) -> frozenset[object]:
    """The events that a resolution asked for."""
    try:
        resolution()
    except MissingEvents as missing:
        return missing.references
    return frozenset()
