"""The state that sections show, read from the database: all rooms at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from homeserver.protocol.strict_json import JsonObject
from homeserver.services.bounded_cache import BoundedCache
from homeserver.services.event_formats import closed_json, open_client_json
from homeserver.services.loaded_events import LoadedEvent, LoadedEvents
from homeserver.services.room_summaries import changes_summary
from homeserver.services.room_visibility import RoomVisibility
from homeserver.services.stored_timelines import (
    StoredTimeline,
    redactions_of,
    unsigned_in_state,
    visible_beside,
)
from homeserver.services.sync_viewer import Viewer
from homeserver.services.timeline_context import StateChange, state_of_changes
from storage import sync_reads
from storage.database import Transaction
from storage.dictionaries import MEMBER_TYPE_NID
from storage.packed_state import REMOVED, StateEntries
from storage.sync_reads import Change

WHOLE_STATES_BYTES: Final = 32 * 1024 * 1024
_BYTES_OF_ENTRY: Final = 250


@dataclass(slots=True)
class StoredState:
    """The state of a section."""

    nids: Sequence[int]
    changes_summary: bool
    """Whether the room's summary may be another than at the beginning."""
    events: list[LoadedEvent] = field(default_factory=list)
    json: list[bytes] = field(default_factory=list)
    """The events as the viewer gets them."""


class StoredStates:
    """Reads states of rooms; whole ones, which many readers ask for, are remembered by their version."""

    def __init__(self, events: LoadedEvents, visibility: RoomVisibility) -> None:
        self._events = events
        self._visibility = visibility
        self._whole: BoundedCache[tuple[int, int, bool], StateEntries] = BoundedCache(WHOLE_STATES_BYTES)

    async def read(
        self, tx: Transaction, viewer: Viewer, timelines: Sequence[StoredTimeline]
    ) -> dict[int, StoredState]:
        """The state of each section, by the numbers of the rooms."""
        whole = await self._whole_states(tx, viewer, timelines)
        changes = await sync_reads.changes(tx, dict(_changes_wanted(viewer, timelines)))
        type_nids = {change.key[0] for of_room in changes.values() for change in of_room}
        if viewer.state_filter is not None:
            type_nids |= {type_nid for entries in whole.values() for type_nid, _ in entries}
            type_nids.add(MEMBER_TYPE_NID)
        types = await sync_reads.type_names(tx, type_nids) if type_nids else {}
        states: dict[int, StoredState] = {}
        for timeline in timelines:
            room = timeline.range.room
            changed = changes.get(room.nid, ())
            entries = _entries(viewer, timeline, whole.get(room.nid, {}), changed)
            if (wanted := viewer.state_filter) is not None:
                names = {type_nid for type_nid, name in types.items() if wanted.allows_type(name)}
                entries = {key: nid for key, nid in entries.items() if key[0] in names}
                entries = entries if wanted.allows_room(room.room_id) else {}
            states[room.nid] = StoredState(
                [nid for nid in entries.values() if nid != REMOVED],
                any(changes_summary(types[change.key[0]]) for change in changed)
                or any(
                    event.state_key is not None and changes_summary(event.type) for event in timeline.events
                ),
            )
        await self._add_events(tx, viewer, timelines, states)
        return states

    async def _whole_states(
        self, tx: Transaction, viewer: Viewer, timelines: Sequence[StoredTimeline]
    ) -> dict[int, StateEntries]:
        """The states of rooms that are shown whole: without members where those are loaded lazily."""
        wanted = viewer.state_filter
        if wanted is not None and wanted.types is not None and not wanted.types:
            return {}
        with_members = not viewer.lazy_load_members and (
            wanted is None or wanted.allows_type("m.room.member")
        )
        at = {
            timeline.range.room.nid: _end(timeline) if viewer.state_after else _first(timeline) - 1
            for timeline in timelines
            if timeline.range.is_whole
        }
        versions = await sync_reads.state_versions(tx, at) if at else {}
        found: dict[int, StateEntries] = {}
        for room_nid, version in versions.items():
            if (kept := self._whole.get((room_nid, version, with_members))) is not None:
                found[room_nid] = kept
        missing = {nid: version for nid, version in versions.items() if nid not in found}
        if missing:
            read = sync_reads.whole_states if with_members else sync_reads.states_without_members
            for room_nid, entries in (await read(tx, missing)).items():
                found[room_nid] = entries
                size_bytes = _BYTES_OF_ENTRY * (len(entries) + 1)
                self._whole.put((room_nid, missing[room_nid], with_members), entries, size_bytes)
        return found

    async def _add_events(
        self,
        tx: Transaction,
        viewer: Viewer,
        timelines: Sequence[StoredTimeline],
        states: Mapping[int, StoredState],
    ) -> None:
        wanted = {
            nid: timeline.range.room for timeline in timelines for nid in states[timeline.range.room.nid].nids
        }
        if not wanted:
            return
        loaded = await self._events.load(tx, wanted)
        for timeline in timelines:
            state = states[timeline.range.room.nid]
            for nid in state.nids:
                event = loaded[nid]
                if viewer.state_filter is None or viewer.state_filter.allows_in_room(event):
                    state.events.append(event)
        if viewer.format.open is not open_client_json:
            loaded = await self._events.load(tx, wanted, viewer.format.open)
        beside = [
            (timeline.range, redactions_of(states[timeline.range.room.nid].events)) for timeline in timelines
        ]
        known = await visible_beside(tx, beside, self._visibility)
        for timeline in timelines:
            state = states[timeline.range.room.nid]
            state.json = [
                state_json(viewer, loaded[event.nid], unsigned_in_state(event, known))
                for event in state.events
            ]


def state_json(viewer: Viewer, event: LoadedEvent, unsigned: JsonObject) -> bytes:
    """An event in a list of state; it is in the viewer's format already, but not finished."""
    return viewer.format.finish(closed_json(event.open_json, unsigned))


def _end(timeline: StoredTimeline) -> int:
    """The version of the state at the timeline's end, or the last that the viewer may know."""
    return timeline.range.state_upto or 0


def _first(timeline: StoredTimeline) -> int:
    """Where the timeline begins, or just after the last state that the viewer may know."""
    return min(timeline.first, _end(timeline) + 1)


def _changes_wanted(
    viewer: Viewer, timelines: Sequence[StoredTimeline]
) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """For each room whose state log has to be read: after, first version of the timeline, up to."""
    for timeline in timelines:
        range_, first, end = timeline.range, _first(timeline), _end(timeline)
        if range_.is_whole:
            after = first - 1
            needed = not viewer.state_after and not timeline.tells_all
        else:
            after = range_.a
            needed = viewer.state_after or not timeline.tells_all or first > range_.a + 1
        if needed and after < end:
            yield range_.room.nid, (after, first, end)


def _entries(
    viewer: Viewer, timeline: StoredTimeline, whole: StateEntries, changed: Sequence[Change]
) -> StateEntries:
    """What a section's state consists of."""
    user_room = timeline.range.section.user_room
    carried = {entry.key for entry in timeline.entries if entry.key is not None}
    entries = whole
    if changed:
        changes = [StateChange(change.key, change.ver, change) for change in changed]
        picked = state_of_changes(changes, _first(timeline), carried, after=viewer.state_after)
        if timeline.range.is_whole and viewer.lazy_load_members:
            picked = [change for change in picked if change.key[0] != MEMBER_TYPE_NID]
        entries = whole | {change.key: change.event_nid for change in picked}
    if timeline.range.section.kind == "leave":
        own = (MEMBER_TYPE_NID, viewer.user_nid)
        if viewer.state_after or all(entry.nid != user_room.event_nid for entry in timeline.entries):
            return entries | {own: user_room.event_nid}
    return entries
