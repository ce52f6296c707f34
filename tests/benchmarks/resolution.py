"""State resolution where it is dear: a large room with many forks, and rooms that were made for it."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.state_resolution import (
    find_conflicts,
    find_overlay_conflicts,
    resolve,
    resolve_conflicts,
)
from homeserver.protocol.state_resolution.auth_graph import auth_graph_of
from tests.benchmarks.measuring import Row, Scale
from tests.protocol.expensive_rooms import (
    HOSTILE_ROOMS,
    VERSIONS,
    NumberedRoom,
    everything_in_conflict,
    large_room,
    states_of_one_key,
)

Result = TypeVar("Result")

FORKS: Final = 20
CHANGES: Final = 300
"""Of each fork."""


def rows(scale: Scale) -> Iterator[Row]:
    """Each algorithm in the large room, then in hostile ones."""
    for version in VERSIONS:
        yield from _large_room(version, scale.forked_members)
    for make, size in HOSTILE_ROOMS.items():
        # The first algorithm replays no more than the states name: in other rooms that is next to nothing.
        in_states = make in (everything_in_conflict, states_of_one_key)
        for version in VERSIONS if in_states else VERSIONS[1:]:
            yield _hostile_room(version, make, size // scale.hostile_fraction)


def _large_room(version: RoomVersion, members: int) -> Iterator[Row]:
    room = large_room(version, members, FORKS, CHANGES)
    name = f"{FORKS} forks, v{version.version}"
    seconds, replayed = _cpu_of(lambda: _resolve(room))
    yield Row(name, seconds, note=f"{replayed:,} replayed, {_peak_of(room) / 1e6:.0f} MB at the peak")
    events = {event.event_id: event for event in room.events.values()}
    states = room.whole_states()
    whole, resolved = _cpu_of(lambda: resolve(version, states, events))
    yield Row(f"{name}, whole states", whole, note=f"{len(resolved):,} entries, {len(events):,} events")
    making, graph = _cpu_of(lambda: auth_graph_of(events))
    yield Row(f"{name}, of that the auth graph", making)
    comparing, _ = _cpu_of(lambda: find_conflicts(version, states, graph))
    yield Row(f"{name}, of that comparing", comparing)


def _hostile_room(version: RoomVersion, make: Callable[[NumberedRoom, int], None], size: int) -> Row:
    room, small_room = NumberedRoom(version), NumberedRoom(version)
    make(room, size)
    make(small_room, size // 10)  # tracing memory takes its time
    seconds, replayed = _cpu_of(lambda: _resolve(room))
    note = f"{replayed:,} replayed, about {_peak_of(small_room) / 1e5:.0f} MB at the peak"
    return Row(f"{make.__name__.replace('_', ' ')}, v{version.version}", seconds, note=note)


def _resolve(room: NumberedRoom) -> int:
    """As a server does it, where the graph is there and forks are what they change: how many are replayed."""
    conflicts = find_overlay_conflicts(room.version, room.state, room.overlays, room.graph)
    resolve_conflicts(room.version, conflicts, room.events, room.graph, absent=room.absent)
    return len(conflicts.full_conflicted_set)


def _peak_of(room: NumberedRoom) -> int:
    """The bytes that a resolution needs."""
    tracemalloc.start()
    _resolve(room)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _cpu_of(operation: Callable[[], Result]) -> tuple[float, Result]:
    started = time.process_time()
    result = operation()
    return time.process_time() - started, result
