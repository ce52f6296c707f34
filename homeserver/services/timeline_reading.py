"""Reading a room's timeline for one user, in either direction, and back over gaps.

Every reading makes progress and looks at a bounded part of the timeline, however little of it a filter lets
through. Where one that goes back comes to what other servers have to give, it waits for that a little, if it
would bring less than was wanted; whether it waits or not, more is fetched before the next one comes there.
Source: Client-Server API, "Getting events for a room", "Room History Visibility".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from homeserver.protocol.filters import EventFilter
from homeserver.services.client_events import ReadEvent
from homeserver.services.history_fetching import HistoryFetching, Outcome
from homeserver.services.reader_views import RoomView
from homeserver.services.room_visibility import RoomVisibility
from storage import fetched_history, room_timeline
from storage.database import Database, Transaction
from storage.dictionaries import Dictionaries
from storage.fetched_history import Gap
from storage.room_timeline import AFTER, FIRST, Position, TimelineRow

ROWS_AT_ONCE: Final = 128
MAX_ROWS: Final = 1000
"""How many events one reading looks at, if a filter lets so few through."""
COST_OF_A_READ: Final = 16
"""A read that finds fewer events counts as if it had found so many."""
MAX_BYTES: Final = 8 * 1024 * 1024
"""How much stored JSON one reading looks at."""
PATIENCE_S: Final = 3.0
"""How long to wait for history that other servers have to give."""


@dataclass(slots=True)
class Reading:
    """What is to be read of a timeline, between two positions, and what was found."""

    view: RoomView
    low: Position
    high: Position
    backwards: bool
    limit: int
    filter: EventFilter
    found: list[ReadEvent] = field(default_factory=list)
    """In the order of reading."""
    stopped_at: Position | None = None
    """Where there may be more; None when nothing visible is left."""
    is_pending: bool = False
    """Whether it stopped at a gap because it takes long to fill it."""
    gap: Gap | None = None
    """The gap that it has come to, although more is wanted."""
    hopeless: set[int] = field(default_factory=set)
    """Gaps before which nobody gives anything now: the room_seq after each."""

    @property
    def edge(self) -> Position:
        """Just beyond the last event that was found, or what was looked at in vain."""
        if self.stopped_at is not None:
            return self.stopped_at
        if not self.found:
            return self.high if self.backwards else self.low
        last = self.found[-1].row
        return last.position if self.backwards else last.next_position


@dataclass(frozen=True)
class TimelineReader:
    """Reads timelines."""

    database: Database
    dictionaries: Dictionaries
    visibility: RoomVisibility
    fetching: HistoryFetching

    async def read(self, tx: Transaction, reading: Reading) -> None:
        """Read what is here. Where `gap` is set then, `read_over_gaps` may find more."""
        wanted = reading.limit - len(reading.found)
        gap = await self._next_gap(tx, reading) if reading.backwards else None
        low = reading.low if gap is None else gap
        found, stopped_at = await self._scan(tx, reading, low, wanted)
        reading.gap = None
        if gap is not None:
            if stopped_at is None:
                stopped_at = gap
                reading.gap = gap if len(found) < wanted else None
            if reading.gap is None:
                room_nid = reading.view.room.nid
                left = await fetched_history.count_between(tx, room_nid, gap, stopped_at, reading.limit)
                if left < reading.limit:
                    self.fetching.start(reading.view.room, gap.seq)  # so that the next page need not wait
        reading.found += found
        reading.stopped_at = stopped_at

    async def read_over_gaps(self, reading: Reading) -> None:
        """Read on as history comes, for as long as a reader may be expected to wait; hold no connection."""
        give_up = _now() + PATIENCE_S
        while (gap := reading.gap) is not None:
            outcome = await self.fetching.fill(reading.view.room, gap.seq, max(0.0, give_up - _now()))
            if outcome is Outcome.LATER:
                reading.is_pending = True
                return
            if outcome is Outcome.NONE:
                reading.hopeless.add(gap.seq)
            reading.high = gap
            before = reading.view
            async with self.database.connection() as tx:
                view = await self.visibility.view(tx, before.room.room_id, before.user_id, before.user_nid)
                if view is None or view.room.nid != before.room.nid:
                    return
                reading.view = view
                await self.read(tx, reading)

    async def _next_gap(self, tx: Transaction, reading: Reading) -> Gap | None:
        """The first gap on the way back in which there may be something that the reader may see."""
        view = reading.view
        for gap in await fetched_history.gaps(tx, view.room.nid, reading.low[0], reading.high[0]):
            is_on_the_way = reading.low < gap <= reading.high and gap.seq not in reading.hopeless
            if is_on_the_way and self.fetching.may_fill(view.room, gap.seq):
                after = await fetched_history.oldest_known(tx, view.room.nid, gap.seq)
                if after is None:
                    continue
                message_in_its_place = after._replace(skey_nid=None, flags=0)
                if await self.visibility.visible(tx, view, [message_in_its_place]):
                    return gap
        return None

    async def _scan(
        self, tx: Transaction, reading: Reading, low: Position, limit: int
    ) -> tuple[list[ReadEvent], Position | None]:
        """The events that the reader may see and the filter lets through, and where there may be more."""
        view, backwards, filter_ = reading.view, reading.backwards, reading.filter
        read = room_timeline.read_backwards if backwards else room_timeline.read_forwards
        found: list[ReadEvent] = []
        rows_read = bytes_read = 0
        for from_, to in _spans(view, low, reading.high, backwards):
            first, last = from_, to
            while True:
                if (
                    len(found) > limit
                    or (len(found) == limit and not filter_.allows_all)
                    or rows_read >= MAX_ROWS
                    or bytes_read >= MAX_BYTES
                ):
                    return _cut(found, limit, last if backwards else first, backwards)
                at_once = min(ROWS_AT_ONCE, limit + 1 - len(found) if filter_.allows_all else ROWS_AT_ONCE)
                rows = await read(tx, view.room.nid, first, last, at_once)
                visible = await self.visibility.visible(tx, view, rows)
                found += self._filtered(view, visible, filter_)
                rows_read += max(len(rows), COST_OF_A_READ)
                bytes_read += sum(len(row.json) for row in rows)
                if len(rows) < at_once:
                    break
                if backwards:
                    last = rows[-1].position
                else:
                    first = rows[-1].next_position
        return _cut(found, limit, None, backwards)

    def _filtered(self, view: RoomView, rows: Sequence[TimelineRow], filter_: EventFilter) -> list[ReadEvent]:
        if filter_.allows_all:
            return [ReadEvent(row, row.pdu(view.room)) for row in rows]
        types = {row.type_nid: self.dictionaries.event_types.known_text(row.type_nid) for row in rows}
        unwanted = {
            nid for nid, known in types.items() if known is not None and not filter_.allows_type(known)
        }
        events = [ReadEvent(row, row.pdu(view.room)) for row in rows if row.type_nid not in unwanted]
        return [event for event in events if filter_.allows(event.pdu)]


def _spans(
    view: RoomView, low: Position, high: Position, backwards: bool
) -> Iterator[tuple[Position, Position]]:
    """The parts between two positions where anything may be visible, in the order of reading."""
    for first, last in reversed(view.ranges) if backwards else view.ranges:
        span = max(low, (first, FIRST)), min(high, (last, AFTER))
        if span[0] < span[1]:
            yield span


def _cut(
    found: list[ReadEvent], limit: int, unread: Position | None, backwards: bool
) -> tuple[list[ReadEvent], Position | None]:
    """What was found, cut to the limit; what goes on from there is either cut off or not read yet."""
    if len(found) <= limit:
        return found, unread
    first_left = found[limit].row
    return found[:limit], first_left.next_position if backwards else first_left.position


def _now() -> float:
    return asyncio.get_running_loop().time()
