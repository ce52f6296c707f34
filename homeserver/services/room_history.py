"""Reading a room's history: one event, pages of events, and what stands around an event.

Every page makes progress. Where it takes long to get more from other servers it ends there, with a token that
was not given before; where nobody gives more for now it goes on behind the gap, or is the last one.
Source: Client-Server API, "Getting events for a room", "Event Context", "Lazy-loading room members".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from homeserver.errors import Forbidden, InvalidParam, MissingParam, NotFound
from homeserver.protocol.filters import EventFilter
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.client_events import ClientEvents, ReadEvent, read_pdus
from homeserver.services.history_fetching import HistoryFetching
from homeserver.services.reader_views import RoomView
from homeserver.services.room_visibility import RoomVisibility
from homeserver.services.sync_tokens import RoomToken, SyncToken
from homeserver.services.timeline_reading import Reading, TimelineReader
from storage import room_state, room_timeline
from storage.database import Database, Transaction
from storage.dictionaries import MEMBER_TYPE_NID, Dictionaries
from storage.packed_state import StateEntries
from storage.room_timeline import AFTER, FIRST, Position, TimelineRow

Direction: TypeAlias = Literal["b", "f"]

DEFAULT_LIMIT: Final = 10
MAX_LIMIT: Final = 1000


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


@dataclass(frozen=True)
class RoomHistory:
    """Answers the endpoints that read a room's timeline."""

    database: Database
    dictionaries: Dictionaries
    visibility: RoomVisibility
    client_events: ClientEvents
    incarnation: str
    fetching: HistoryFetching
    _timelines: TimelineReader = field(init=False, repr=False)

    def __post_init__(self) -> None:
        reader = TimelineReader(self.database, self.dictionaries, self.visibility, self.fetching)
        object.__setattr__(self, "_timelines", reader)

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
            reading = Reading(view, low, high, backwards, limit, request.filter)
            await self._timelines.read(tx, reading)
            if reading.gap is None:
                return await self._page(tx, requester, reading, request, start)
        await self._timelines.read_over_gaps(reading)
        async with self.database.connection() as tx:
            return await self._page(tx, requester, reading, request, start)

    async def _page(
        self,
        tx: Transaction,
        requester: Requester,
        reading: Reading,
        request: PageRequest,
        start: Position,
    ) -> Page:
        """The page of what was found."""
        view, filter_ = reading.view, reading.filter
        chunk = await self.client_events.of_timeline(tx, view, requester, reading.found)
        state = None
        if filter_.lazy_load_members and reading.found:
            newest = max(reading.found, key=lambda event: event.row.position)
            senders = {event.row.sender_nid for event in reading.found}
            state = await self._state(tx, view, newest.row, filter_, senders, others=False)
        end = None
        if reading.stopped_at is not None:
            asked = RoomToken.parse(request.from_ or "")
            comes_again = reading.is_pending and reading.stopped_at == start and asked is not None
            end = str(RoomToken(*reading.stopped_at, asked.turn + 1 if asked and comes_again else 0))
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
            low, middle, high = _FAR[False], event.row.position, (view.head_seq, AFTER)
            before = Reading(view, low, middle, True, limit // 2, filter_)
            await self._timelines.read(tx, before)
        if before.gap is not None:
            await self._timelines.read_over_gaps(before)
        async with self.database.connection() as tx:
            after = Reading(view, event.row.next_position, high, False, limit - limit // 2, filter_)
            await self._timelines.read(tx, after)
            together = [*reversed(before.found), event, *after.found]
            shown = await self.client_events.of_timeline(tx, view, requester, together)
            senders = {read.row.sender_nid for read in together} if filter_.lazy_load_members else None
            state = await self._state(tx, view, together[-1].row, filter_, senders, others=True)
        place = len(before.found)
        return Context(
            event=shown[place],
            events_before=shown[:place][::-1],
            events_after=shown[place + 1 :],
            start=str(RoomToken(*before.edge)),
            end=str(RoomToken(*after.edge)),
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
