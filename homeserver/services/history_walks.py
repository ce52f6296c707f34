"""Walking back through a room's history, from events to those that they name as their prev_events.

A walk ends, however the history looks: it takes a bounded number of steps. It leads over rejected events, but
brings none; where an event is not here, or only as an outlier, it ends. What is older is said by which event
names which, and by the order in which they came here: never by their `depth`, about which a server can lie.
Source: Server-Server API, "Backfilling and retrieving missing events".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from homeserver.protocol.event_hashes import decode_event_id
from homeserver.protocol.identifiers import EventId
from homeserver.services.client_events import ReadEvent
from storage import room_timeline, served_events
from storage.database import Transaction
from storage.room_heads import RoomRef
from storage.room_timeline import AFTER, FIRST, Position, TimelineRow

MAX_STEPS: Final = 500
"""How many events one walk looks at."""
MAX_STARTS: Final = 50
"""Of the events that a walk is to begin with, the others are passed over."""


async def newest_first(tx: Transaction, room: RoomRef, starts: Iterable[str], limit: int) -> list[ReadEvent]:
    """Some events and those before them, each before all that it names; the newest if there are more."""
    reader = _Reader(tx, room, limit)
    first = list(dict.fromkeys(starts))[:MAX_STARTS]
    seen = set(first)
    found: list[ReadEvent] = []
    ahead: list[tuple[int, int, int, ReadEvent]] = []

    def put(events: Iterable[ReadEvent]) -> None:
        for event in events:
            seq, sub = _place(event.row)
            heappush(ahead, (-seq, -sub, -event.row.nid, event))

    put(await reader.read(first))
    while ahead and len(found) < limit:
        *_, event = heappop(ahead)
        if served_events.is_served(event.row):
            found.append(event)
        named = dict.fromkeys(event.pdu.prev_events)
        before = [event_id for event_id in named if event_id not in seen][: max(0, MAX_STEPS - len(seen))]
        seen.update(before)
        put(await reader.read(before))
    return _in_order(found)[::-1]


async def oldest_first(
    tx: Transaction,
    room: RoomRef,
    latest: Iterable[str],
    earliest: Iterable[str],
    limit: int,
    min_depth: int,
    upto: int | None = None,
) -> list[ReadEvent]:
    """The events before `latest`, no further than `earliest`: those nearest to `latest` if there are more.

    The given ones are not among them, nor is what is less deep than `min_depth`, or lies behind that.
    `upto`: what came here after this room_seq is passed over.
    """
    reader = _Reader(tx, room, limit, upto)
    first = list(dict.fromkeys(latest))[:MAX_STARTS]
    seen = {*first, *earliest}
    found: list[ReadEvent] = []
    level = await reader.read(first)
    steps = MAX_STEPS
    while level and len(found) < limit and steps > 0:
        named = dict.fromkeys(event_id for event in level for event_id in event.pdu.prev_events)
        before = [event_id for event_id in named if event_id not in seen][:steps]
        seen.update(before)
        steps -= len(before)
        level = [event for event in await reader.read(before) if event.pdu.depth >= min_depth]
        found += [event for event in level if served_events.is_served(event.row)]
    return _in_order(found[:limit])


def _place(row: TimelineRow) -> Position:
    """Where an event came in; one that got no place in the timeline: after the state that it builds on."""
    return row.position if row.seq > 0 else (row.state_ver or 0, AFTER)


def _in_order(events: Iterable[ReadEvent]) -> list[ReadEvent]:
    """The events from old to new, each after those among them that it names."""
    by_age = sorted(events, key=lambda event: (_place(event.row), event.row.nid))
    waiting = {event.pdu.event_id: event for event in by_age}
    ordered: list[ReadEvent] = []
    for oldest in by_age:
        stack = [oldest] if waiting.pop(oldest.pdu.event_id, None) is not None else []
        while stack:
            before = next((prev for prev in stack[-1].pdu.prev_events if prev in waiting), None)
            if before is not None:
                stack.append(waiting.pop(before))
            else:
                ordered.append(stack.pop())
    return ordered


@dataclass
class _Reader:
    """Reads events of a room by their IDs, and with each that it has to look for those just before it too.

    Most histories are lines: so a page of one costs two queries.
    """

    tx: Transaction
    room: RoomRef
    limit: int
    upto: int | None = None
    known: dict[EventId, TimelineRow] = field(default_factory=dict)

    async def read(self, event_ids: Iterable[str]) -> list[ReadEvent]:
        """Those of some events that the room has, in the order in which they are named."""
        wanted = [EventId(event_id) for event_id in event_ids]
        missing = [event_id for event_id in wanted if event_id not in self.known]
        if missing:
            rows = await served_events.find(self.tx, self.room.nid, missing)
            self._remember(rows)
            newest = max((row for row in rows if row.seq > 0), key=lambda row: row.position, default=None)
            if newest is not None and self.limit > 1:
                self._remember(
                    await room_timeline.read_backwards(
                        self.tx, self.room.nid, (0, FIRST), newest.position, self.limit - 1
                    )
                )
        rows = [self.known[event_id] for event_id in wanted if event_id in self.known]
        if self.upto is not None:
            rows = [row for row in rows if _place(row) <= (self.upto, AFTER)]
        return [ReadEvent(row, row.pdu(self.room)) for row in rows]

    def _remember(self, rows: Iterable[TimelineRow]) -> None:
        self.known.update((decode_event_id(row.stored_id), row) for row in rows)
