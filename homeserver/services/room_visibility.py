"""Who may see what of a room: the one place that answers it for every endpoint.

A reader's view of a room is built from two short lists, how its membership changed and how the history
visibility changed, and then filters whole pages of events without asking the database about each. Only events
on forks, and history that was fetched later, bring a state of their own: it is looked up for all of a page.
Source: Client-Server API, "Room History Visibility".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

from homeserver.protocol.events import Pdu
from homeserver.protocol.history_visibility import (
    HISTORY_VISIBILITY,
    View,
    ViewHistory,
    Visibility,
    may_see,
    visibility_in,
)
from homeserver.protocol.identifiers import RoomId, UserId
from storage import room_readers, room_timeline, state_deltas
from storage.database import Transaction
from storage.dictionaries import MEMBER_TYPE_NID
from storage.packed_state import REMOVED, Key
from storage.room_heads import RoomRef
from storage.room_readers import ViewChange
from storage.room_timeline import TimelineRow

MAX_REMEMBERED_CHANGES: Final = 500_000
"""Of all views together; those that were used longest ago go first."""

NEWEST: Final = 2**62
"""A room_seq beyond all others."""

_UNKNOWN_KEY: Final[Key] = (0, 0)


@dataclass(frozen=True, slots=True)
class _Known:
    """How a reader's view of a room changed up to a version of its state, and what follows from it."""

    room_nid: int
    upto: int
    visibilities: tuple[tuple[int, Visibility], ...]
    memberships: tuple[tuple[int, object], ...]
    history: ViewHistory
    ranges: tuple[tuple[int, int], ...]
    removed_at: int | None

    @classmethod
    def of(
        cls,
        room_nid: int,
        upto: int,
        visibilities: Sequence[tuple[int, Visibility]] = (),
        memberships: Sequence[tuple[int, object]] = (),
    ) -> Self:
        history = ViewHistory(visibilities, memberships)
        versions = sorted({version for version, _ in (*visibilities, *memberships)})
        return cls(
            room_nid,
            upto,
            tuple(visibilities),
            tuple(memberships),
            history,
            _ranges(history, versions),
            _removed_at(memberships),
        )

    def with_more(self, changes: Sequence[ViewChange], upto: int) -> _Known:
        """These and later changes; what changes nothing (a new display name) is left out."""
        if not changes:
            return replace(self, upto=upto)
        visibilities, memberships = list(self.visibilities), list(self.memberships)
        for change in changes:
            if change.is_member:
                membership = None if change.content is None else change.content.get("membership")
                if not memberships or memberships[-1][1] != membership:
                    memberships.append((change.ver, membership))
            else:
                visibility = visibility_in(change.content)
                if not visibilities or visibilities[-1][1] != visibility:
                    visibilities.append((change.ver, visibility))
        return _Known.of(self.room_nid, upto, visibilities, memberships)

    def without_memberships(self) -> _Known:
        """The view of one who never had to do with the room."""
        return _Known.of(self.room_nid, self.upto, self.visibilities)

    @property
    def size(self) -> int:
        """What this takes of the space for all views."""
        return 1 + len(self.visibilities) + len(self.memberships)


@dataclass(frozen=True, slots=True)
class RoomView:
    """A user's view of a room, as of the room's newest event at `head_seq`.

    Whoever reads further must not read beyond `head_seq`: what came later is not judged.
    """

    room: RoomRef
    head_seq: int
    user_id: UserId
    user_nid: int
    history: ViewHistory
    ranges: tuple[tuple[int, int], ...]
    """Where events may be visible: (first, last room_seq), ascending. None outside of them is."""
    removed_at: int | None
    """The version at which the user's last stay in the room ended; None for one who never joined."""
    visibility_key: Key

    @property
    def membership(self) -> object:
        """What the user is in the room now; None for one who never had to do with it, or forgot it."""
        return self.history.view_at(self.head_seq).membership

    @property
    def is_joined(self) -> bool:
        """Whether the user is in the room now."""
        return self.membership == "join"

    @property
    def state_version(self) -> int | None:
        """The newest version of the room's state that the user may read; None for one who may read none.

        A member reads the current state, one who left reads it as it was then, and anyone that of a room
        which is readable by the world.
        """
        if self.is_joined:
            return self.head_seq
        if self.removed_at is not None:
            return self.removed_at
        world_readable = self.history.view_at(self.head_seq).visibility is Visibility.WORLD_READABLE
        return self.head_seq if world_readable else None

    def may_change_view(self, row: TimelineRow) -> bool:
        """Whether an event changes the visibility or the reader's own membership."""
        if row.skey_nid is None:
            return False
        key = (row.type_nid, row.skey_nid)
        return key in (self.visibility_key, (MEMBER_TYPE_NID, self.user_nid))

    def view_after(self, row: TimelineRow, pdu: Pdu) -> View:
        """The reader's view after an event, whose state before is taken to be the trunk's."""
        ver = row.seq - 1 if row.state_ver is None else row.state_ver
        return self.history.view_at(ver).after(pdu, self.user_id)

    def shows(self, row: TimelineRow, own: View | None = None) -> bool:
        """Whether the reader may see an event.

        `own`: the view in the state before the event, where that is another than the trunk's when it arrived.
        An event on a fork that arrived after the reader had left is judged by that: whoever has left gets
        nothing more, even if the event's sender had not heard of it.
        """
        if not row.is_live:
            return False
        arrival = row.seq - 1
        if own is None:
            if not self.may_change_view(row):
                return self.history.shows(arrival)
            return self.history.shows_change(arrival, row.pdu(self.room), self.user_id)
        joined_later = self.history.joined_after(arrival)
        now = self.history.view_at(arrival).membership
        if now == "join":
            joined_later = True
        elif not joined_later:
            own = View(own.visibility, now)
        after = own.after(row.pdu(self.room), self.user_id) if self.may_change_view(row) else own
        return may_see(own, after, joined_later=joined_later)


class RoomVisibility:
    """Loads views and judges events by them; a view that is remembered is brought up to date at each use."""

    def __init__(self, max_changes: int = MAX_REMEMBERED_CHANGES) -> None:
        self._visibility_key: Key | None = None
        self._max_changes = max_changes
        self._known: OrderedDict[tuple[RoomId, int], _Known] = OrderedDict()
        self._remembered = 0

    async def view(self, tx: Transaction, room_id: RoomId, user_id: UserId, user_nid: int) -> RoomView | None:
        """A user's view of a room as of now; None for a room that has no events here."""
        visibility_key = await self._key_of_visibility(tx)
        known = self._known.get((room_id, user_nid))
        after = -1 if known is None else known.upto
        reader = await room_readers.load(tx, room_id, user_nid, visibility_key, after)
        if reader is not None and known is not None and known.room_nid != reader.room.nid:
            known = None  # the room was purged and is another one now
            reader = await room_readers.load(tx, room_id, user_nid, visibility_key, -1)
        if reader is None:
            return None
        known = (known or _Known.of(reader.room.nid, -1)).with_more(reader.changes, reader.head_seq)
        self._remember((room_id, user_nid), known)
        if reader.forgotten:
            known = known.without_memberships()
        return RoomView(
            room=reader.room,
            head_seq=reader.head_seq,
            user_id=user_id,
            user_nid=user_nid,
            history=known.history,
            ranges=known.ranges,
            removed_at=known.removed_at,
            visibility_key=visibility_key,
        )

    async def visible(
        self, tx: Transaction, view: RoomView, rows: Sequence[TimelineRow]
    ) -> list[TimelineRow]:
        """Those of the events that the reader may see, in their order."""
        apart = [row for row in rows if row.state_ver is not None and row.is_live]
        own_views = await self._own_views(tx, view, apart) if apart else {}
        return [row for row in rows if view.shows(row, own_views.get(row.nid))]

    async def _own_views(
        self, tx: Transaction, view: RoomView, rows: Sequence[TimelineRow]
    ) -> dict[int, View]:
        """The views in the states before events that bring a state of their own."""
        delta_ids = {row.state_delta for row in rows if row.state_delta is not None}
        deltas = await state_deltas.load(tx, delta_ids) if delta_ids else {}
        member_key = (MEMBER_TYPE_NID, view.user_nid)
        differing = {
            (delta_id, key): event_nid
            for delta_id, delta in deltas.items()
            for key in (view.visibility_key, member_key)
            if (event_nid := delta.get(key)) is not None
        }
        events = await _contents(tx, view.room, differing.values())
        views = {}
        for row in rows:
            assert row.state_ver is not None
            base = view.history.view_at(row.state_ver)
            visibility, membership = base.visibility, base.membership
            if (found := differing.get((row.state_delta or 0, view.visibility_key))) is not None:
                event = events.get(found)
                visibility = visibility_in(None if event is None else event.content)
            if (found := differing.get((row.state_delta or 0, member_key))) is not None:
                event = events.get(found)
                membership = None if event is None else event.membership
            views[row.nid] = View(visibility, membership)
        return views

    async def _key_of_visibility(self, tx: Transaction) -> Key:
        if self._visibility_key is None:
            self._visibility_key = await room_readers.state_key_of(tx, HISTORY_VISIBILITY)
        # As long as no room has a visibility there is nothing to be found, and 0 is nobody's number.
        return self._visibility_key or _UNKNOWN_KEY

    def _remember(self, key: tuple[RoomId, int], known: _Known) -> None:
        before = self._known.pop(key, None)
        if before is not None:
            self._remembered -= before.size
        self._known[key] = known
        self._remembered += known.size
        while self._remembered > self._max_changes:
            self._remembered -= self._known.popitem(last=False)[1].size


async def _contents(tx: Transaction, room: RoomRef, nids: Iterable[int]) -> Mapping[int, Pdu]:
    wanted = {nid for nid in nids if nid != REMOVED}
    if not wanted:
        return {}
    rows = await room_timeline.by_nids(tx, wanted)
    return {nid: row.pdu(room) for nid, row in rows.items()}


def _ranges(history: ViewHistory, versions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Where a reader sees anything, by room_seq; exact for rooms without forks.

    Between two changes of the view the answer is the same for all events; the event that makes a change may
    be visible although those before it are not.
    """
    ranges: list[tuple[int, int]] = []

    def add(first: int, last: int) -> None:
        if last < max(first, 1):
            return
        if ranges and ranges[-1][1] >= first - 1:
            ranges[-1] = (ranges[-1][0], last)
        else:
            ranges.append((max(first, 1), last))

    for start, change in zip([-1, *versions], [*versions, NEWEST], strict=True):
        if history.shows(start):
            add(start + 1, change)
        elif change != NEWEST:
            before, after = history.view_at(change - 1), history.view_at(change)
            if may_see(before, after, joined_later=history.joined_after(change - 1)):
                add(change, change)
    return tuple(ranges)


def _removed_at(memberships: Sequence[tuple[int, object]]) -> int | None:
    """The version at which a user last stopped being joined; None for one who is joined or never was."""
    for (_, before), (version, after) in zip(reversed(memberships[:-1]), reversed(memberships), strict=False):
        if after == "join":
            return None
        if before == "join":
            return version
    return None
