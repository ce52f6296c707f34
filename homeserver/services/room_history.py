"""Reading a room's history: one event, pages of events, and what stands around an event.

Every page makes progress and reads a bounded part of the history, however little of it a filter lets through.
Source: Client-Server API, "Getting events for a room", "Event Context", "Lazy-loading room members".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from homeserver.errors import Forbidden, InvalidParam, MissingParam, NotFound
from homeserver.protocol.filters import EventFilter
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.client_events import ClientEvents, ReadEvent, read_pdus
from homeserver.services.room_visibility import RoomView, RoomVisibility
from homeserver.services.sync_tokens import RoomToken, SyncToken
from storage import room_state, room_timeline
from storage.database import Database, Transaction
from storage.dictionaries import MEMBER_TYPE_NID, Dictionaries
from storage.packed_state import StateEntries
from storage.room_timeline import AFTER, FIRST, Position, TimelineRow

Direction: TypeAlias = Literal["b", "f"]

DEFAULT_LIMIT: Final = 10
MAX_LIMIT: Final = 1000
ROWS_AT_ONCE: Final = 128
MAX_ROWS: Final = 1000
"""How many events one page looks at, if a filter lets so few through."""
COST_OF_A_READ: Final = 16
"""A read that finds fewer events counts as if it had found so many."""
MAX_BYTES: Final = 8 * 1024 * 1024
"""How much stored JSON one page looks at."""


@dataclass(frozen=True)
class PageRequest:
    """What a client asks for in /messages, in the specification's names."""

    direction: Direction | None
    from_: str | None = None
    to: str | None = None
    limit: int | None = None
    filter: EventFilter = field(default_factory=EventFilter)


@dataclass(frozen=True)
class Page:
    """A page of a room's history."""

    chunk: list[JsonObject]
    start: str
    end: str | None
    """Where the next page begins; None when nothing visible is left."""
    state: list[JsonObject] | None


@dataclass(frozen=True)
class Context:
    """An event and what stands around it."""

    event: JsonObject
    events_before: list[JsonObject]
    """The newest first."""
    events_after: list[JsonObject]
    start: str
    end: str
    state: list[JsonObject]


@dataclass(slots=True)
class _Scan:
    """What reading from one position in one direction found."""

    found: list[ReadEvent]
    stopped_at: Position | None
    """Where there may be more; None when nothing visible is left."""


@dataclass(frozen=True)
class RoomHistory:
    """Answers the endpoints that read a room's timeline."""

    database: Database
    dictionaries: Dictionaries
    visibility: RoomVisibility
    client_events: ClientEvents
    incarnation: str

    async def event(self, requester: Requester, room_id: RoomId, event_id: EventId) -> JsonObject:
        """One event. Raises NotFound, also for one that the requester may not see."""
        async with self.database.connection() as tx:
            view, event = await self._visible_event(tx, requester, room_id, event_id)
            [shown] = await self.client_events.of_timeline(tx, view, requester, [event])
        return shown

    async def messages(self, requester: Requester, room_id: RoomId, request: PageRequest) -> Page:
        """A page of events in either direction.

        A limit of 0 counts as 1: a page that brings nothing would be asked for again and again. Raises
        Forbidden for a room of which the requester may see nothing, InvalidParam for a token that is none
        of ours, MissingParam without a direction.
        """
        async with self.database.connection() as tx:
            view = await self.visibility.view(tx, room_id, requester.user_id, requester.user_nid)
            if view is None or not view.ranges:
                raise Forbidden("you are not in this room")
            if request.direction is None:
                raise MissingParam("dir is missing: b or f")
            backwards = request.direction == "b"
            head: Position = (view.head_seq, AFTER)
            start = min(head, await self._position(tx, view, request.from_, "from") or _FAR[backwards])
            stop = await self._position(tx, view, request.to, "to") or _FAR[not backwards]
            limit = request.limit if request.limit is not None else request.filter.limit
            limit = DEFAULT_LIMIT if limit is None else min(max(limit, 1), MAX_LIMIT)
            low, high = (stop, start) if backwards else (start, min(stop, head))
            scan = await self._scan(tx, view, low, high, backwards, limit, request.filter)
            chunk = await self.client_events.of_timeline(tx, view, requester, scan.found)
            state = None
            if request.filter.lazy_load_members and scan.found:
                newest = max(scan.found, key=lambda event: event.row.position)
                senders = {event.row.sender_nid for event in scan.found}
                state = await self._state(tx, view, newest.row, request.filter, senders, others=False)
        end = None if scan.stopped_at is None else str(RoomToken(*scan.stopped_at))
        return Page(chunk, request.from_ or str(RoomToken(*start)), end, state)

    async def context(
        self,
        requester: Requester,
        room_id: RoomId,
        event_id: EventId,
        limit: int | None,
        filter_: EventFilter,
    ) -> Context:
        """An event with the events before and after it, `limit` together, and the state after the last.

        The filter holds for all but the event itself. Raises NotFound as `event` does.
        """
        limit = DEFAULT_LIMIT if limit is None else min(limit, MAX_LIMIT)
        async with self.database.connection() as tx:
            view, event = await self._visible_event(tx, requester, room_id, event_id)
            start, end = event.row.position, event.row.next_position
            head = (view.head_seq, AFTER)
            before = await self._scan(tx, view, _FAR[False], start, True, limit // 2, filter_)
            after = await self._scan(tx, view, end, head, False, limit - limit // 2, filter_)
            together = [*reversed(before.found), event, *after.found]
            shown = await self.client_events.of_timeline(tx, view, requester, together)
            senders = {read.row.sender_nid for read in together} if filter_.lazy_load_members else None
            state = await self._state(tx, view, together[-1].row, filter_, senders, others=True)
        middle = len(before.found)
        return Context(
            event=shown[middle],
            events_before=shown[:middle][::-1],
            events_after=shown[middle + 1 :],
            start=str(RoomToken(*_edge(before, start, backwards=True))),
            end=str(RoomToken(*_edge(after, end, backwards=False))),
            state=state,
        )

    async def _visible_event(
        self, tx: Transaction, requester: Requester, room_id: RoomId, event_id: EventId
    ) -> tuple[RoomView, ReadEvent]:
        view = await self.visibility.view(tx, room_id, requester.user_id, requester.user_nid)
        if view is not None:
            row = await room_timeline.find(tx, view.room.nid, event_id)
            if (
                row is not None
                and row.seq <= view.head_seq
                and await self.visibility.visible(tx, view, [row])
            ):
                return view, ReadEvent(row, row.pdu(view.room))
        raise NotFound("there is no such event that you may see")

    async def _scan(
        self,
        tx: Transaction,
        view: RoomView,
        low: Position,
        high: Position,
        backwards: bool,
        limit: int,
        filter_: EventFilter,
    ) -> _Scan:
        """The events between two positions that the reader may see and the filter lets through."""
        read = room_timeline.read_backwards if backwards else room_timeline.read_forwards
        found: list[ReadEvent] = []
        rows_read = bytes_read = 0
        for from_, to in _spans(view, low, high, backwards):
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

    async def _state(
        self,
        tx: Transaction,
        view: RoomView,
        last: TimelineRow,
        filter_: EventFilter,
        members: set[int] | None,
        *,
        others: bool,
    ) -> list[JsonObject]:
        """State after an event, as the filter wants it.

        `members`: the users whose member events are wanted, None for all; `others`: whether all else is.
        """
        before = last.state_before(view.room)
        entries: StateEntries = {}
        if members is None:
            entries = await room_state.whole(tx, before)
        else:
            entries = await room_state.of_keys(tx, before, [(MEMBER_TYPE_NID, nid) for nid in members])
            if others:
                entries |= await room_state.except_members(tx, before)
        if (change := last.own_change()) is not None:
            (type_nid, skey_nid), event_nid = change
            if members is None or (skey_nid in members if type_nid == MEMBER_TYPE_NID else others):
                entries[type_nid, skey_nid] = event_nid
        now_ms = self.client_events.clock()
        return [
            self.client_events.state_event(pdu, now_ms)
            async for pdus in read_pdus(tx, view.room, entries.values())
            for pdu in pdus
            if filter_.allows(pdu)
        ]

    async def _position(
        self, tx: Transaction, view: RoomView, token: str | None, name: str
    ) -> Position | None:
        """The place that a token of /sync or of a page stands for; None for no token."""
        if token is None:
            return None
        if (room_token := RoomToken.parse(token)) is not None:
            return room_token.seq, room_token.sub
        if (sync_token := SyncToken.parse(token)) is not None and sync_token.incarnation == self.incarnation:
            return await room_timeline.seq_at(tx, view.room.nid, sync_token.pos), AFTER
        raise InvalidParam(f"{name} is no token of this server")


_FAR: Final[dict[bool, Position]] = {False: (0, FIRST), True: (2**62, AFTER)}
"""The ends of every timeline: False the oldest, True the newest."""


def _spans(
    view: RoomView, low: Position, high: Position, backwards: bool
) -> Iterator[tuple[Position, Position]]:
    """The parts between two positions where anything may be visible, in the order of reading."""
    for first, last in reversed(view.ranges) if backwards else view.ranges:
        span = max(low, (first, FIRST)), min(high, (last, AFTER))
        if span[0] < span[1]:
            yield span


def _cut(found: list[ReadEvent], limit: int, unread: Position | None, backwards: bool) -> _Scan:
    """What was found, cut to the limit; what goes on from there is either cut off or not read yet."""
    if len(found) <= limit:
        return _Scan(found, unread)
    first_left = found[limit].row
    return _Scan(found[:limit], first_left.next_position if backwards else first_left.position)


def _edge(scan: _Scan, middle: Position, *, backwards: bool) -> Position:
    """The token of a context's edge: just beyond the last event given, or what was looked at in vain."""
    if scan.stopped_at is not None:
        return scan.stopped_at
    if not scan.found:
        return middle
    last = scan.found[-1].row
    return last.position if backwards else last.next_position
