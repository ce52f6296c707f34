"""Events as other servers ask for them: by their IDs, live or soft-failed, and many at once by their numbers.

What has no state before it is not found by its ID, unless it is or was part of the room's state: other
outliers are only served as parts of states and of auth chains. Rejected events are found, since the way to
older ones leads over them, but never served.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.event_hashes import decode_event_id, encode_event_id
from homeserver.protocol.identifiers import EventId
from storage import room_timeline
from storage.database import Transaction
from storage.event_flags import EventFlag
from storage.room_heads import RoomRef
from storage.room_timeline import TimelineRow


def is_served(row: TimelineRow) -> bool:
    """Whether an event that was found by its ID is served to servers that may see it."""
    return not row.flags & EventFlag.REJECTED


async def find(tx: Transaction, room_nid: int, event_ids: Iterable[str]) -> list[TimelineRow]:
    """Those of some events that a room has and whose state before them is known."""
    found = await room_timeline.by_stored_ids(tx, _stored_ids(event_ids))
    return [row for room, row in found if room.nid == room_nid and _is_found(row)]


async def find_in_any_room(tx: Transaction, event_id: EventId) -> tuple[RoomRef, TimelineRow] | None:
    """An event and its room, as `find` finds it, or the outlier that is or was part of the room's state."""
    for room, row in await room_timeline.by_stored_ids(tx, _stored_ids([event_id])):
        if _is_found(row) or await _was_in_state(tx, room.nid, row):
            return room, row
    return None


async def newest_change(tx: Transaction, room_nid: int, ver: int) -> int:
    """The newest version of a room's state, at or before one, at which it changed; -1 where there is none."""
    query = "SELECT max(ver) FROM room_state_log WHERE room_nid = $1 AND ver <= $2"
    found = await tx.fetchval(query, room_nid, ver)
    return -1 if found is None else int(found)


async def nid_of(tx: Transaction, room_nid: int, event_id: EventId) -> int | None:
    """The number of a room's event, whatever its place; None for one that is not stored."""
    found = await room_timeline.by_stored_ids(tx, _stored_ids([event_id]))
    return next((row.nid for room, row in found if room.nid == room_nid), None)


async def ids(tx: Transaction, nids: Collection[int]) -> list[EventId]:
    """The IDs of events by their numbers, without those that were rejected."""
    rows = await tx.fetch(
        "SELECT event_id FROM events WHERE nid = ANY($1::bigint[]) AND flags & $2 = 0 ORDER BY nid",
        list(nids),
        EventFlag.REJECTED,
    )
    return [decode_event_id(row["event_id"]) for row in rows]


def _is_found(row: TimelineRow) -> bool:
    return row.has_state_before and not row.flags & EventFlag.HIDDEN


async def _was_in_state(tx: Transaction, room_nid: int, row: TimelineRow) -> bool:
    """Whether an event is or was part of its room's state."""
    if row.skey_nid is None:
        return False
    query = "SELECT event_nid FROM room_state_log WHERE room_nid = $1 AND type_nid = $2 AND skey_nid = $3"
    entries = await tx.fetch(query, room_nid, row.type_nid, row.skey_nid)
    return any(entry["event_nid"] == row.nid for entry in entries)


def _stored_ids(event_ids: Iterable[str]) -> list[bytes]:
    """The stored forms of event IDs; what can be the ID of no event has none."""
    stored_ids = []
    for event_id in event_ids:
        try:
            stored_ids.append(encode_event_id(EventId(event_id)))
        except InvalidIdentifier:
            continue
    return stored_ids
