"""State resolution in rooms that were made to be expensive: how many events are met is bounded.

What counts is steps, not time: an event or its auth events that are looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from homeserver.protocol.auth_events import POWER_LEVELS
from homeserver.protocol.events import Pdu
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.state_resolution import (
    AuthGraph,
    auth_difference,
    find_overlay_conflicts,
    resolve,
    resolve_conflicts,
)
from tests.protocol.expensive_rooms import (
    HOSTILE_ROOMS,
    VERSIONS,
    NumberedRoom,
    event_id_of,
    large_room,
    topics_above_a_long_chain,
)

versions = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.version)


class CountingGraph(AuthGraph[int]):
    """Counts the auth events that are looked at, in either direction."""

    steps = 0

    def auth_events(self, ref: int) -> tuple[int, ...]:
        found = super().auth_events(ref)
        self.steps += 1 + len(found)
        return found

    def cited_by(self, ref: int) -> Sequence[int]:
        found = super().cited_by(ref)
        self.steps += 1 + len(found)
        return found

    def power_levels_of(self, ref: int) -> int | None:
        self.steps += 1
        return super().power_levels_of(ref)

    def auth_chain(self, refs: Collection[int]) -> set[int]:
        chain = super().auth_chain(refs)
        self.steps += len(refs) + len(chain)
        return chain


class CountingEvents(dict[int, Pdu]):
    """Counts the events that are looked up."""

    steps = 0

    def __getitem__(self, number: int) -> Pdu:
        self.steps += 1
        return super().__getitem__(number)


def steps_of(room: NumberedRoom) -> int:
    """How many steps it takes to resolve a room's forks."""
    graph, events = room.graph, CountingEvents(room.events)
    assert isinstance(graph, CountingGraph)
    graph.steps = 0
    conflicts = find_overlay_conflicts(room.version, room.state, room.overlays, graph)
    resolve_conflicts(room.version, conflicts, events, graph, absent=room.absent)
    return graph.steps + events.steps


@pytest.mark.invariant("SEC-RES-2")
@versions
@pytest.mark.parametrize("make", HOSTILE_ROOMS)
def test_sec_res_2_twice_as_many_events_take_no_more_than_twice_the_steps(
    make: Callable[[NumberedRoom, int], None], version: RoomVersion
) -> None:
    steps = []
    for size in (200, 400):
        room = NumberedRoom(version, CountingGraph())
        make(room, size)
        steps.append(steps_of(room))

    assert steps[1] <= 2.1 * steps[0] + 10


@pytest.mark.invariant("SEC-RES-1")
@versions
@pytest.mark.parametrize("make", HOSTILE_ROOMS)
def test_sec_res_1_hostile_rooms_resolve_whatever_the_order_of_their_forks(
    make: Callable[[NumberedRoom, int], None], version: RoomVersion
) -> None:
    room = NumberedRoom(version)
    make(room, 40)
    states = room.whole_states()
    events = {event.event_id: event for event in room.events.values()}
    conflicts = find_overlay_conflicts(version, room.state, room.overlays, room.graph)
    changes = resolve_conflicts(version, conflicts, room.events, room.graph, absent=room.absent)
    absent = set(map(event_id_of, room.absent))
    told = {**room.state, **changes}

    resolved = resolve(version, states, events, absent=absent)

    assert resolve(version, states[::-1], events, absent=absent) == resolved
    assert resolved == {
        key: room.events[number].event_id for key, number in told.items() if number is not None
    }


@pytest.mark.invariant("SEC-RES-2")
@versions
def test_sec_res_2_a_small_disagreement_costs_little_however_long_the_auth_chain(
    version: RoomVersion,
) -> None:
    room = NumberedRoom(version, CountingGraph())
    topics_above_a_long_chain(room, 5000)

    assert steps_of(room) < 1000


@pytest.mark.invariant("SEC-RES-2")
@versions
def test_sec_res_2_forks_share_the_walk_of_what_lies_below_them(version: RoomVersion) -> None:
    graph = CountingGraph()
    room = NumberedRoom(version, graph)
    chain = room.set_levels_often(1000)
    room.overlays += [{POWER_LEVELS: number} for number in chain[::10]]

    find_overlay_conflicts(version, room.state, room.overlays, graph)

    assert graph.steps < 10 * len(chain)


@pytest.mark.invariant("SEC-RES-2")
@versions
def test_sec_res_2_forks_of_a_large_room_cost_what_they_change(version: RoomVersion) -> None:
    small, large = (large_room(version, members, 5, 100, CountingGraph()) for members in (1000, 5000))

    assert steps_of(large) < 1.5 * steps_of(small)


@example({0: [1], 1: [0], 2: [0], 3: [2]}, [{0}, set()], {3})
@given(
    st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=3, unique=True)),
    st.lists(st.sets(st.integers(0, 9)), min_size=1, max_size=4),
    st.sets(st.integers(0, 9)),
)
@pytest.mark.invariant("SEC-RES-1")
def test_sec_res_1_the_auth_difference_is_right_where_auth_events_go_round_in_circles(
    auth_events: dict[int, list[int]], differing: list[set[int]], common: set[int]
) -> None:
    graph: AuthGraph[int] = AuthGraph()
    for ref, named in auth_events.items():
        graph.add(ref, named, is_power_levels=False)
    chains = [graph.auth_chain(common | refs) for refs in differing]

    difference = auth_difference(graph, differing, common)

    assert difference == chains[0].union(*chains) - chains[0].intersection(*chains)
