"""Rooms that their readers have been in all the time, shown from memory: without a query.

Whoever is in a room sees all that happens there, whatever its history visibility, but for events on forks
that do not know of it. So all who wait for the same events get the same bytes, but for the device that sent
one of them.
"""

from __future__ import annotations

from typing import Final

from homeserver.protocol.events import StateKey
from homeserver.services.bounded_cache import BoundedCache
from homeserver.services.event_formats import COMMON_FORMAT, closed_json
from homeserver.services.recent_events import AGE_TOLERANCE_MS, RecentEvent, RecentEvents
from homeserver.services.room_summaries import changes_summary
from homeserver.services.section_json import RoomPart, timeline_json
from homeserver.services.sync_tokens import RoomToken
from homeserver.services.sync_viewer import Section, Viewer
from homeserver.services.timeline_context import StateChange, speakers_of, state_of_changes

SHARED_BYTES: Final = 16 * 1024 * 1024
_OVERHEAD_BYTES: Final = 1000


class RecentSections:
    """Makes parts of responses out of the newest events, and remembers those that many readers share."""

    def __init__(self, recent: RecentEvents) -> None:
        self._recent = recent
        self._shared: BoundedCache[tuple[object, ...], tuple[int, RoomPart]] = BoundedCache(SHARED_BYTES)

    def covers(self, viewer: Viewer, section: Section) -> bool:
        """Whether all that is new is in memory, and the reader was in the room all the time.

        Where forks meet, the state changes otherwise than the timeline tells, and an event on a fork may be
        none for the reader: that is read from the database.
        """
        since, user_room = viewer.since, section.user_room
        if section.kind != "join" or section.full_state or since is None or since < self._recent.start:
            return False
        if user_room.pos > since and (user_room.since is None or user_room.since > since):
            return False
        events = self._recent.of_room(section.room.nid, since)
        return all(
            event.stream.is_plain and event.is_complete and not _may_be_sent_by(viewer, event)
            for event in events
        )

    def part(self, viewer: Viewer, section: Section) -> RoomPart | None:
        """What is new in a room; None for nothing.

        Does not wait: what is in memory is what is new up to `viewer.upto` only as long as nobody else runs.
        """
        assert viewer.since is not None
        events = self._recent.of_room(section.room.nid, viewer.since)
        if not events:
            return None
        if not viewer.is_common or any(_sent_by(viewer, event) for event in events):
            return _part(viewer, section, events)
        first, last = events[0].stream.pos, events[-1].stream.pos
        key = (section.room.nid, first, last, viewer.limit, viewer.state_after)
        kept = self._shared.get(key)
        if kept is not None and viewer.now_ms - kept[0] < AGE_TOLERANCE_MS:
            return kept[1]
        part = _part(viewer, section, events)
        size_bytes = len(part.timeline) + sum(map(len, part.state)) + _OVERHEAD_BYTES
        self._shared.put(key, (viewer.now_ms, part), size_bytes)
        return part


def _part(viewer: Viewer, section: Section, events: list[RecentEvent]) -> RoomPart:
    room_id, end = section.room.room_id, events[-1].seq + 1
    shown, limited = _without_what_is_before_a_gap(events)
    shown = [event for event in shown if event.is_for_clients]
    if (wanted := viewer.timeline_filter) is not None:
        shown = [event for event in shown if wanted.allows_in_room(event.pdu)]
        shown = shown if wanted.allows_room(room_id) else []
    if len(shown) > viewer.limit:
        shown, limited = shown[len(shown) - viewer.limit :], True
    first = shown[0].seq if shown else end
    carried = {event.pdu.key for event in shown if event.pdu.state_key is not None}
    changes: list[StateChange[StateKey, RecentEvent]] = [
        StateChange(event.pdu.key, event.seq, event) for event in events if event.pdu.state_key is not None
    ]
    state = state_of_changes(changes, first, carried, after=viewer.state_after)
    if (wanted := viewer.state_filter) is not None:
        state = [event for event in state if wanted.allows_in_room(event.pdu)]
        state = state if wanted.allows_room(room_id) else []
    in_state = {user_id for event in state if (user_id := _member(event)) is not None}
    return RoomPart(
        timeline=timeline_json(
            [_timeline_event(viewer, event) for event in shown],
            limited=limited,
            prev_batch=RoomToken(first, 0),
        ),
        state=[_state_event(viewer, event) for event in state],
        is_empty=not shown and not state,
        limited=limited,
        is_whole=False,
        changes_summary=any(changes_summary(change.key[0]) for change in changes),
        speakers=speakers_of(
            [event.pdu for event in shown], in_state, first - 1, end - 1, after=viewer.state_after
        ),
        members=in_state
        if viewer.state_after
        else in_state | {user_id for event in shown if (user_id := _member(event)) is not None},
        state_upto=end - 1,
    )


def _member(event: RecentEvent) -> str | None:
    """The user whose member event this is."""
    return event.pdu.state_key if event.pdu.type == "m.room.member" else None


def _without_what_is_before_a_gap(events: list[RecentEvent]) -> tuple[list[RecentEvent], bool]:
    """The events after the newest gap, and whether there is one."""
    for index in range(len(events) - 1, -1, -1):
        if events[index].stream.after_gap:
            return events[index:], True
    return events, False


def _sent_by(viewer: Viewer, event: RecentEvent) -> bool:
    """Whether the viewer's device sent an event, under an ID of its own."""
    return event.stream.key is not None and event.stream.key.device_nid == viewer.device_nid


def _may_be_sent_by(viewer: Viewer, event: RecentEvent) -> bool:
    """Whether the viewer's device may have sent an event, through another process."""
    pdu = event.pdu
    return pdu.sender == viewer.user_id and pdu.state_key is None and event.stream.key is None


def _timeline_event(viewer: Viewer, event: RecentEvent) -> bytes:
    is_own = _sent_by(viewer, event)
    if viewer.format is COMMON_FORMAT and not is_own:
        return event.json(viewer.now_ms)
    unsigned = event.unsigned(viewer.now_ms)
    if is_own and event.stream.key is not None:
        unsigned["transaction_id"] = event.stream.key.txn_id
    return viewer.format.finish(closed_json(_open(viewer, event), unsigned))


def _state_event(viewer: Viewer, event: RecentEvent) -> bytes:
    return viewer.format.finish(closed_json(_open(viewer, event), event.unsigned_in_state()))


def _open(viewer: Viewer, event: RecentEvent) -> bytes:
    return event.open_json if viewer.format is COMMON_FORMAT else viewer.format.open(event.pdu)
