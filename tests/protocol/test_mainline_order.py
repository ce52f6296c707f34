"""The mainline ordering, by its definition, in auth graphs of whatever shape."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from homeserver.protocol.state_resolution import AuthGraph
from homeserver.protocol.state_resolution.ordering import mainline_order
from tests.protocol.expensive_rooms import NumberedRoom
from tests.protocol.rooms import V11

SIZE = 7
ROOM = NumberedRoom(V11)
ROOM.set_levels_often(SIZE)
"""All that the ordering reads of its events is their timestamps, which are their numbers."""


@pytest.mark.invariant("SEC-RES-1")
@example({4: [], 1: [], 2: [1], 6: [2], 5: [4, 6], 3: [4], 0: [3]}, {3, 4, 5}, 5)
@given(
    st.dictionaries(
        st.integers(0, SIZE - 1), st.lists(st.integers(0, SIZE - 1), max_size=3, unique=True), max_size=SIZE
    ),
    st.sets(st.integers(0, SIZE - 1)),
    st.integers(0, SIZE - 1) | st.none(),
)
def test_sec_res_1_the_mainline_ordering_is_what_the_specification_says(
    auth_events: dict[int, list[int]], power_levels: set[int], newest: int | None
) -> None:
    graph: AuthGraph[int] = AuthGraph()
    for ref, named in auth_events.items():
        graph.add(ref, named, is_power_levels=ref in power_levels)

    def line(ref: int | None) -> list[int]:
        found: list[int] = []
        while ref is not None and ref not in found:
            found.append(ref)
            ref = graph.power_levels_of(ref)
        return found

    mainline = line(newest)

    def rank(ref: int) -> tuple[float, int]:
        ancestor = next((one for one in line(graph.power_levels_of(ref)) if one in mainline), None)
        return -inf if ancestor is None else -mainline.index(ancestor), ref

    ordered = mainline_order(range(SIZE), newest, graph, ROOM.events)

    assert ordered == sorted(range(SIZE), key=rank)
