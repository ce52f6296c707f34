"""The timelines of sections, read from the database: all rooms at once, however many they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from homeserver.protocol.strict_json import JsonObject
from homeserver.services.event_formats import closed_json, open_client_json
from homeserver.services.loaded_events import LoadedEvent, LoadedEvents
from homeserver.services.room_visibility import RoomVisibility
from homeserver.services.stored_ranges import StoredRange
from homeserver.services.sync_viewer import DEFAULT_LIMIT, Viewer
from storage import sync_reads
from storage.database import Transaction
from storage.event_flags import EventFlag
from storage.room_heads import RoomRef
from storage.sync_reads import StateNumber, TimelineEntry

MAX_EVENTS: Final = 50_000
"""How many events all timelines of a response hold; of very many rooms each shows the default number."""
MAX_SCANNED: Final = 2000
"""How many events of a room are looked at, if few of them are shown."""
MAX_SCANNED_IN_ALL: Final = 20_000
"""How many events of all rooms together are looked at before those that show few are left at that."""
_WIDENING: Final = 4


@dataclass(slots=True)
class StoredTimeline:
    """The timeline of a section."""

    range: StoredRange
    entries: Sequence[TimelineEntry]
    limited: bool
    events: list[LoadedEvent] = field(default_factory=list)
    """Those of the entries, in the same order."""
    json: list[bytes] = field(default_factory=list)
    """The events as the viewer gets them."""

    @property
    def first(self) -> int:
        """The room_seq at which the timeline begins; beyond the section's end where it is empty."""
        return self.entries[0].seq if self.entries else self.range.b + 1

    @property
    def has_resolutions(self) -> bool:
        """Whether forks met here: then the state is not what the events of the timeline make it."""
        return any(entry.flags & EventFlag.RESOLVED for entry in self.entries)

    @property
    def tells_all(self) -> bool:
        """Whether no event is left out from `first` on, and nothing else changed the state."""
        return len(self.entries) == self.range.b + 1 - self.first and not self.has_resolutions


class _Scan:
    """Reading a room's timeline backwards, until enough is found."""

    def __init__(self, range_: StoredRange, limit: int) -> None:
        self.range = range_
        self.upto = range_.b if range_.section.kind == "leave" else range_.view.newest_in_range(range_.b)
        self.size = limit + 1
        self._limit = limit
        self._kept: list[TimelineEntry] = []
        self.scanned = 0
        self._is_complete = self.upto <= range_.timeline_from
        self._has_gap = False

    @property
    def is_done(self) -> bool:
        """Whether there is enough, or nothing more."""
        return self._is_complete or len(self._kept) > self._limit or self.scanned >= MAX_SCANNED

    def take(self, entries: Sequence[TimelineEntry]) -> Sequence[TimelineEntry]:
        """What was read up to `upto`; returns what follows the newest gap in it."""
        self.scanned += len(entries)
        if entries:
            self.upto = self.range.view.newest_in_range(entries[0].seq - 1)
        self._is_complete = len(entries) < self.size or self.upto <= self.range.timeline_from
        self.size = min(self.size * _WIDENING, MAX_SCANNED)
        for index in range(len(entries) - 1, -1, -1):
            if entries[index].flags & EventFlag.GAP:
                self._is_complete = self._has_gap = True
                return entries[index:]
        return entries

    def with_own_end(
        self, entries: Sequence[TimelineEntry], visible: Collection[TimelineEntry]
    ) -> list[TimelineEntry]:
        """What the viewer may see of some entries; how its own stay ended it sees in any case."""
        own_end = self.range.section.user_room.event_nid if self.range.section.kind == "leave" else None
        if len(visible) == len(entries) or own_end is None:
            return list(visible)
        shown = {own_end, *(entry.nid for entry in visible)}
        return [entry for entry in entries if entry.nid in shown]

    def keep(self, entries: Sequence[TimelineEntry]) -> None:
        """Of those, the ones that the filter lets through."""
        self._kept = [*entries, *self._kept]

    def timeline(self) -> StoredTimeline:
        """What was found."""
        limited = self._has_gap or not self._is_complete or len(self._kept) > self._limit
        return StoredTimeline(self.range, self._kept[max(0, len(self._kept) - self._limit) :], limited)


async def read_timelines(
    tx: Transaction,
    viewer: Viewer,
    ranges: Sequence[StoredRange],
    events: LoadedEvents,
    visibility: RoomVisibility,
) -> list[StoredTimeline]:
    """The timelines of sections, with their events."""
    limit = min(viewer.limit, max(DEFAULT_LIMIT, MAX_EVENTS // max(1, len(ranges))))
    scans = {range_.room.nid: _Scan(range_, limit) for range_ in ranges}
    running = {nid: scan for nid, scan in scans.items() if not scan.is_done}
    scanned = 0
    while running and scanned < MAX_SCANNED_IN_ALL:
        found = await sync_reads.newest_entries(
            tx,
            {nid: (scan.range.timeline_from, scan.upto, scan.size) for nid, scan in running.items()},
        )
        taken = {nid: scan.take(found[nid]) for nid, scan in running.items()}
        visible = await _visible(tx, running, taken, visibility)
        if viewer.timeline_filter is not None:
            visible = await _filtered(tx, viewer, running, visible, events)
        for nid, scan in running.items():
            scan.keep(visible[nid])
            scanned += len(found[nid])
        running = {nid: scan for nid, scan in running.items() if not scan.is_done}
    timelines = [scan.timeline() for scan in scans.values()]
    if not viewer.state_after:
        await _cut_contradicted(tx, timelines)
    await _add_events(tx, viewer, timelines, events, visibility)
    return timelines


async def _visible(
    tx: Transaction,
    scans: Mapping[int, _Scan],
    taken: Mapping[int, Sequence[TimelineEntry]],
    visibility: RoomVisibility,
) -> dict[int, list[TimelineEntry]]:
    """What the viewer may see of the entries of each room."""
    pages = [(scan.range.view, taken[nid]) for nid, scan in scans.items()]
    shown = await visibility.visible_in_rooms(tx, pages)
    return {
        nid: scan.with_own_end(taken[nid], entries)
        for (nid, scan), entries in zip(scans.items(), shown, strict=True)
    }


async def _cut_contradicted(tx: Transaction, timelines: Sequence[StoredTimeline]) -> None:
    """Let timelines begin after state events that are not in force although nothing in them came instead.

    Clients take the state from the timeline, and where forks meet an event may lose without a successor.
    """
    newest: dict[StateNumber, int] = {}
    for timeline in timelines:
        if timeline.tells_all:
            continue
        for entry in timeline.entries:
            if entry.key is not None:
                newest[StateNumber(timeline.range.room.nid, timeline.range.b, *entry.key)] = entry.nid
    if not newest:
        return
    in_force = await sync_reads.events_of_keys(tx, newest)
    lost = {nid for question, nid in newest.items() if in_force.get(question) != nid}
    for timeline in timelines:
        contradicted = [index for index, entry in enumerate(timeline.entries) if entry.nid in lost]
        if contradicted:
            timeline.entries = timeline.entries[contradicted[-1] + 1 :]
            timeline.limited = True


async def _filtered(
    tx: Transaction,
    viewer: Viewer,
    scans: Mapping[int, _Scan],
    visible: Mapping[int, list[TimelineEntry]],
    events: LoadedEvents,
) -> dict[int, list[TimelineEntry]]:
    wanted = viewer.timeline_filter
    assert wanted is not None
    rooms = {nid: scan.range.room for nid, scan in scans.items()}
    types = await sync_reads.type_names(
        tx, {entry.type_nid for entries in visible.values() for entry in entries}
    )
    allowed = {type_nid for type_nid, name in types.items() if wanted.allows_type(name)}
    visible = {
        nid: [entry for entry in entries if entry.type_nid in allowed]
        if wanted.allows_room(rooms[nid].room_id)
        else []
        for nid, entries in visible.items()
    }
    loaded = await events.load(
        tx, {entry.nid: rooms[nid] for nid, entries in visible.items() for entry in entries}
    )
    return {
        nid: [entry for entry in entries if wanted.allows_in_room(loaded[entry.nid])]
        for nid, entries in visible.items()
    }


async def _add_events(
    tx: Transaction,
    viewer: Viewer,
    timelines: Sequence[StoredTimeline],
    events: LoadedEvents,
    visibility: RoomVisibility,
) -> None:
    """The events of all timelines with what stands beside them, read at once."""
    entries = [(timeline.range, entry) for timeline in timelines for entry in timeline.entries]
    if not entries:
        return
    replaced = await sync_reads.replaced_events(tx, [(range_.room.nid, entry) for range_, entry in entries])
    rooms = {range_.room.nid: range_.room for range_, _ in entries}
    wanted: dict[int, RoomRef] = {entry.nid: range_.room for range_, entry in entries}
    wanted |= {nid: rooms[room_nid] for (room_nid, _), nid in replaced.items()}
    loaded = await events.load(tx, wanted)
    opened = loaded
    if viewer.format.open is not open_client_json:
        opened = await events.load(
            tx, {entry.nid: range_.room for range_, entry in entries}, viewer.format.open
        )
    own = [entry.nid for _, entry in entries if loaded[entry.nid].sender == viewer.user_id]
    txn_ids = await sync_reads.txn_ids_of_device(tx, viewer.device_nid, list(rooms), own) if own else {}
    before = {
        entry.nid: loaded[nid]
        for range_, entry in entries
        if (nid := replaced.get((range_.room.nid, entry.seq))) is not None
    }
    beside = [
        (range_, [*redactions_of([loaded[entry.nid]]), *([before[entry.nid]] if entry.nid in before else [])])
        for range_, entry in entries
    ]
    known = await visible_beside(tx, beside, visibility)
    for timeline in timelines:
        for entry in timeline.entries:
            event = loaded[entry.nid]
            unsigned = _unsigned(
                viewer, timeline.range, event, before.get(entry.nid), txn_ids.get(entry.nid), known
            )
            timeline.events.append(event)
            timeline.json.append(viewer.format.finish(closed_json(opened[entry.nid].open_json, unsigned)))


def redactions_of(events: Iterable[LoadedEvent]) -> list[LoadedEvent]:
    """What took the content of events."""
    return [event.redacted_because for event in events if event.redacted_because is not None]


async def visible_beside(
    tx: Transaction, events: Sequence[tuple[StoredRange, Sequence[LoadedEvent]]], visibility: RoomVisibility
) -> set[int]:
    """The numbers of those events that the viewer may see, and that had come by the end of the response."""
    pages = [
        (range_.view, [event for event in of_room if event.seq <= range_.b])
        for range_, of_room in events
        if of_room
    ]
    return {event.nid for shown in await visibility.visible_in_rooms(tx, pages) for event in shown}


def _unsigned(
    viewer: Viewer,
    range_: StoredRange,
    event: LoadedEvent,
    replaced: LoadedEvent | None,
    txn_id: str | None,
    known: Collection[int],
) -> JsonObject:
    """What stands beside an event. `known`: the numbers of other events that the viewer may see."""
    unsigned: JsonObject = {
        "age": max(0, viewer.now_ms - event.origin_server_ts),
        "membership": range_.view.membership_after(event.seq),
        **unsigned_in_state(event, known),
    }
    if replaced is not None:
        unsigned["replaces_state"] = replaced.event_id
        is_own = event.type == "m.room.member" and event.state_key == viewer.user_id
        if is_own or range_.was_in_room(event.seq) or replaced.nid in known:
            unsigned["prev_content"] = replaced.content
            unsigned["prev_sender"] = replaced.sender
    if txn_id is not None:
        unsigned["transaction_id"] = txn_id
    return unsigned


def unsigned_in_state(event: LoadedEvent, known: Collection[int]) -> JsonObject:
    """What stands beside an event in a list of state: why its content is gone, if the viewer may know."""
    because = event.redacted_because
    return {} if because is None or because.nid not in known else {"redacted_because": because.json}
