"""Rooms that are shown from the database: new to the reader, left, or not in memory any more."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from homeserver.services.loaded_events import LoadedEvent, LoadedEvents
from homeserver.services.room_visibility import RoomVisibility
from homeserver.services.section_json import RoomPart, timeline_json
from homeserver.services.stored_ranges import read_ranges
from homeserver.services.stored_states import StoredState, StoredStates, state_json
from homeserver.services.stored_timelines import StoredTimeline, read_timelines
from homeserver.services.sync_tokens import RoomToken
from homeserver.services.sync_viewer import Section, Viewer
from homeserver.services.timeline_context import speakers_of
from storage import sync_reads
from storage.database import Database
from storage.room_heads import RoomRef
from storage.sync_reads import StateQuestion


class StoredSections:
    """Makes parts of responses: a handful of queries, however many the rooms are."""

    def __init__(self, database: Database, events: LoadedEvents, visibility: RoomVisibility) -> None:
        self._database = database
        self._events = events
        self._visibility = visibility
        self._states = StoredStates(events, visibility)

    async def parts(self, viewer: Viewer, sections: Sequence[Section]) -> list[tuple[Section, RoomPart]]:
        """What is to be shown of rooms; those that have nothing new are left out."""
        async with self._database.connection() as tx:
            ranges = await read_ranges(tx, viewer, sections, self._visibility)
            timelines = await read_timelines(tx, viewer, ranges, self._events, self._visibility)
            states = await self._states.read(tx, viewer, timelines)
        return [
            (timeline.range.section, _part(viewer, timeline, states[timeline.range.room.nid]))
            for timeline in timelines
        ]

    async def members(
        self, viewer: Viewer, wanted: Mapping[int, tuple[RoomRef, Mapping[str, int]]]
    ) -> dict[int, list[bytes]]:
        """Member events of rooms, by the rooms' numbers: of each user as of a version of the state."""
        questions = [
            StateQuestion(room.nid, version, "m.room.member", user_id)
            for room, versions in wanted.values()
            for user_id, version in versions.items()
        ]
        async with self._database.connection() as tx:
            nids = await sync_reads.current_events(tx, questions)
            rooms = {nid: wanted[question.room_nid][0] for question, nid in nids.items()}
            loaded = await self._events.load(tx, rooms, viewer.format.open)
        found: dict[int, list[bytes]] = {nid: [] for nid in wanted}
        for question, nid in nids.items():
            event = loaded[nid]
            if viewer.state_filter is None or viewer.state_filter.allows_in_room(event):
                found[question.room_nid].append(state_json(viewer, event, {}))
        return found


def _part(viewer: Viewer, timeline: StoredTimeline, state: StoredState) -> RoomPart:
    range_ = timeline.range
    end = range_.state_upto or 0
    before = min(timeline.first - 1, end)
    in_state = _members(state.events)
    speakers = {}
    if viewer.lazy_load_members and range_.state_upto is not None:
        speakers = speakers_of(timeline.events, in_state, before, end, after=viewer.state_after)
    return RoomPart(
        timeline=timeline_json(
            timeline.json, limited=timeline.limited, prev_batch=RoomToken(timeline.first, 0)
        ),
        state=state.json,
        is_empty=not timeline.events and not state.events,
        limited=timeline.limited,
        is_whole=range_.is_whole,
        changes_summary=range_.section.kind == "join" and (range_.is_whole or state.changes_summary),
        speakers=speakers,
        members=in_state if viewer.state_after else in_state | _members(timeline.events),
        state_upto=end,
    )


def _members(events: Collection[LoadedEvent]) -> set[str]:
    """The users whose member events these are."""
    return {
        event.state_key for event in events if event.type == "m.room.member" and event.state_key is not None
    }
