"""Who may see what of rooms: the one place that answers it for every endpoint, for one room or many at once.

Views are loaded and brought up to date with one query, however many the rooms are. Only events on forks, and
history that was fetched later, bring a state of their own: it is looked up for all of them together.
Source: Client-Server API, "Room History Visibility".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from homeserver.protocol.events import Pdu
from homeserver.protocol.history_visibility import HISTORY_VISIBILITY, View, Visibility, visibility_in
from homeserver.protocol.identifiers import RoomId, UserId
from homeserver.services.bounded_cache import BoundedCache
from homeserver.services.reader_views import JudgedEvent, Past, RoomView
from storage import room_readers, room_timeline, state_deltas
from storage.database import Transaction
from storage.dictionaries import MEMBER_TYPE_NID
from storage.packed_state import REMOVED, Key
from storage.room_heads import RoomRef
from storage.room_readers import Reader, ViewChange
from storage.state_deltas import Delta

E = TypeVar("E", bound=JudgedEvent)

MAX_REMEMBERED_CHANGES: Final = 200_000
"""Of all views together, about 180 bytes each; those that were used longest ago go first."""
MAX_REMEMBERED_VISIBILITIES: Final = 20_000
COST_OF_A_VIEW: Final = 5
"""What a view takes besides its changes, in changes."""

_UNKNOWN_KEY: Final[Key] = (0, 0)
_NO_PAST: Final = Past.of()


@dataclass(frozen=True, slots=True)
class _Known:
    """A reader's past in a room, up to a version of its state."""

    room_nid: int
    upto: int
    past: Past


class RoomVisibility:
    """Loads views and judges events by them; a view that is remembered is brought up to date at each use."""

    def __init__(self, max_changes: int = MAX_REMEMBERED_CHANGES) -> None:
        self._visibility_key: Key | None = None
        self._known: BoundedCache[tuple[RoomId, int], _Known] = BoundedCache(max_changes)
        self._visibilities: BoundedCache[int, Visibility] = BoundedCache(MAX_REMEMBERED_VISIBILITIES)
        """By the numbers of the events that say so."""

    async def view(self, tx: Transaction, room_id: RoomId, user_id: UserId, user_nid: int) -> RoomView | None:
        """A user's view of a room as of now; None for a room that has no events here.

        Who has forgotten the room sees it like one who was never there.
        """
        visibility_key = await self._key_of_visibility(tx)
        readers = await self._readers(tx, [room_id], user_nid, visibility_key)
        if room_id not in readers:
            return None
        reader, past = readers[room_id]
        if reader.forgotten:
            past = past.without_memberships()
        return RoomView(reader.room, reader.head_seq, user_id, user_nid, past, visibility_key)

    async def views(
        self, tx: Transaction, room_ids: Collection[RoomId], user_id: UserId, user_nid: int
    ) -> dict[RoomId, RoomView]:
        """A user's views of rooms as of now, those that it has forgotten included."""
        visibility_key = await self._key_of_visibility(tx)
        readers = await self._readers(tx, room_ids, user_nid, visibility_key)
        return {
            room_id: RoomView(reader.room, reader.head_seq, user_id, user_nid, past, visibility_key)
            for room_id, (reader, past) in readers.items()
        }

    async def visible(self, tx: Transaction, view: RoomView, events: Sequence[E]) -> list[E]:
        """Those of the events of a room that the reader may see, in their order."""
        [shown] = await self.visible_in_rooms(tx, [(view, events)])
        return shown

    async def visible_in_rooms(
        self, tx: Transaction, pages: Sequence[tuple[RoomView, Sequence[E]]]
    ) -> list[list[E]]:
        """Those of the events of each room that its reader may see, in their order."""
        apart = [
            (view, event)
            for view, events in pages
            for event in events
            if view.has_own_state(event) or view.needs_content(event)
        ]
        if not apart:
            return [[event for event in events if view.shows(event)] for view, events in pages]
        own_views, contents = await self._apart(tx, apart)
        return [
            [
                event
                for event in events
                if view.shows(event, own_views.get(event.nid), contents.get(event.nid))
            ]
            for view, events in pages
        ]

    async def _apart(
        self, tx: Transaction, apart: Sequence[tuple[RoomView, JudgedEvent]]
    ) -> tuple[dict[int, View], Mapping[int, Pdu]]:
        """The views in the states before events that bring one, and the events that change a view apart."""
        delta_ids = {event.state_delta for _, event in apart if event.state_delta is not None}
        deltas = await state_deltas.load(tx, delta_ids) if delta_ids else {}
        rooms: dict[int, RoomRef] = {}
        for view, event in apart:
            if view.needs_content(event):
                rooms[event.nid] = view.room
            rooms.update((nid, view.room) for nid in _differing(view, event, deltas) if nid is not None)
        pdus = await _pdus(tx, rooms)
        views = {
            event.nid: _view_before(view, event, deltas, pdus)
            for view, event in apart
            if view.has_own_state(event)
        }
        return views, pdus

    async def _readers(
        self, tx: Transaction, room_ids: Collection[RoomId], user_nid: int, visibility_key: Key
    ) -> dict[RoomId, tuple[Reader, Past]]:
        """A user as the reader of rooms, with its past in each up to now."""
        known = {
            room_id: kept
            for room_id in room_ids
            if (kept := self._known.get((room_id, user_nid))) is not None
        }
        after = {room_id: known[room_id].upto if room_id in known else -1 for room_id in room_ids}
        readers = await room_readers.load(tx, user_nid, visibility_key, after)
        # A room that was purged and came back is another one now.
        others = [
            room_id
            for room_id, reader in readers.items()
            if room_id in known and known[room_id].room_nid != reader.room.nid
        ]
        for room_id in others:
            del known[room_id]
        if others:
            readers |= await room_readers.load(tx, user_nid, visibility_key, dict.fromkeys(others, -1))
        found = {}
        for room_id, reader in readers.items():
            past = known[room_id].past if room_id in known else _NO_PAST
            past = past.with_more(
                [(change.ver, self._visibility(change)) for change in reader.changes if not change.is_member],
                _memberships(past, reader.changes),
            )
            self._known.put(
                (room_id, user_nid),
                _Known(reader.room.nid, reader.head_seq, past),
                COST_OF_A_VIEW + past.size,
            )
            found[room_id] = reader, past
        return found

    def _visibility(self, change: ViewChange) -> Visibility:
        """What an event of the history visibility says; a redaction does not change it."""
        known = self._visibilities.get(change.event_nid)
        if known is None:
            known = visibility_in(change.content)
            self._visibilities.put(change.event_nid, known, 1)
        return known

    async def _key_of_visibility(self, tx: Transaction) -> Key:
        if self._visibility_key is None:
            self._visibility_key = await room_readers.state_key_of(tx, HISTORY_VISIBILITY)
        # As long as no room has a visibility there is nothing to be found, and 0 is nobody's number.
        return self._visibility_key or _UNKNOWN_KEY


def _memberships(past: Past, changes: Sequence[ViewChange]) -> list[tuple[int, object]]:
    """What a user has become since, by version: nobody comes into a room but by a join that arrives here.

    That a resolution has the user in the room, or the state with which this server came back, is no stay.
    """
    now = past.memberships[-1][1] if past.memberships else None
    found = []
    for change in changes:
        if not change.is_member:
            continue
        membership = _membership(change)
        if change.arrived or membership != "join" or now == "join":
            now = membership
            found.append((change.ver, membership))
    return found


def _membership(change: ViewChange) -> object:
    if change.membership is not None:
        return change.membership
    content = change.content
    return None if content is None else content.get("membership")


def _differing(
    view: RoomView, event: JudgedEvent, deltas: Mapping[int, Delta]
) -> tuple[int | None, int | None]:
    """The events of visibility and membership before an event, where they are other than the trunk's."""
    if event.state_delta is None or not view.has_own_state(event):
        return None, None
    delta = deltas[event.state_delta]
    return delta.get(view.visibility_key), delta.get((MEMBER_TYPE_NID, view.user_nid))


def _view_before(
    view: RoomView, event: JudgedEvent, deltas: Mapping[int, Delta], pdus: Mapping[int, Pdu]
) -> View:
    """The reader's view in the state before an event that brings one."""
    assert event.state_ver is not None
    before = view.history.view_at(event.state_ver)
    visibility, membership = _differing(view, event, deltas)
    if visibility is not None:
        changed = pdus.get(visibility)
        before = replace(before, visibility=visibility_in(None if changed is None else changed.content))
    if membership is not None:
        changed = pdus.get(membership)
        before = replace(before, membership=None if changed is None else changed.membership)
    return before


async def _pdus(tx: Transaction, rooms: Mapping[int, RoomRef]) -> dict[int, Pdu]:
    """Events by their numbers; `rooms`: the room of each."""
    wanted = [nid for nid in rooms if nid != REMOVED]
    if not wanted:
        return {}
    return {nid: row.pdu(rooms[nid]) for nid, row in (await room_timeline.by_nids(tx, wanted)).items()}
