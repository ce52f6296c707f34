"""Events as other servers ask for them: by their IDs, live or soft-failed, and many at once by their numbers.

What has no state before it is not found by its ID, unless it is or was part of the room's state: other
outliers are only served as parts of states and of auth chains. Rejected events are found, since the way to
older ones leads over them, but never served.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.event_hashes import decode_event_id, encode_event_id
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.protocol.room_versions import room_version
from storage import room_timeline
from storage.database import Transaction
from storage.event_flags import EventFlag
from storage.room_heads import RoomRef
from storage.room_timeline import TimelineRow

_HAS_STATE: Final = f"""
    (events.room_seq IS NOT NULL OR events.state_ver IS NOT NULL) AND events.flags & {EventFlag.HIDDEN} = 0
"""


def is_served(row: TimelineRow) -> bool:
    """Whether an event that was found by its ID is served to servers that may see it."""
    return not row.flags & EventFlag.REJECTED


async def find(tx: Transaction, room_nid: int, event_ids: Iterable[str]) -> list[TimelineRow]:
    """Those of some events that a room has and whose state before them is known."""
    query = f"SELECT nid FROM events WHERE event_id = ANY($2::bytea[]) AND room_nid = $1 AND {_HAS_STATE}"  # noqa: S608
    rows = await tx.fetch(query, room_nid, _stored_ids(event_ids))
    return list((await room_timeline.by_nids(tx, [row["nid"] for row in rows])).values()) if rows else []


async def find_in_any_room(tx: Transaction, event_id: EventId) -> tuple[RoomRef, TimelineRow] | None:
    """An event and its room, as `find` finds it, or the outlier that is or was part of the room's state."""
    query = f"""
        SELECT events.nid, room_nid, room_id, version FROM events JOIN rooms ON rooms.nid = room_nid
        WHERE event_id = ANY($1::bytea[]) AND ({_HAS_STATE} OR EXISTS (
            SELECT FROM room_state_log AS log
            WHERE log.room_nid = events.room_nid AND log.type_nid = events.type_nid
              AND log.skey_nid = events.skey_nid AND log.event_nid = events.nid))
    """  # noqa: S608
    row = await tx.fetchrow(query, _stored_ids([event_id]))
    if row is None:
        return None
    room = RoomRef(row["room_nid"], RoomId(row["room_id"]), room_version(row["version"]))
    return room, (await room_timeline.by_nids(tx, [row["nid"]]))[row["nid"]]


async def newest_change(tx: Transaction, room_nid: int, ver: int) -> int:
    """The newest version of a room's state, at or before one, at which it changed; -1 where there is none."""
    query = "SELECT max(ver) FROM room_state_log WHERE room_nid = $1 AND ver <= $2"
    found = await tx.fetchval(query, room_nid, ver)
    return -1 if found is None else int(found)


async def nid_of(tx: Transaction, room_nid: int, event_id: EventId) -> int | None:
    """The number of a room's event, whatever its place; None for one that is not stored."""
    query = "SELECT nid FROM events WHERE event_id = ANY($2::bytea[]) AND room_nid = $1"
    nid: int | None = await tx.fetchval(query, room_nid, _stored_ids([event_id]))
    return nid


async def ids(tx: Transaction, nids: Collection[int]) -> list[EventId]:
    """The IDs of events by their numbers, without those that were rejected."""
    rows = await tx.fetch(
        "SELECT event_id FROM events WHERE nid = ANY($1::bigint[]) AND flags & $2 = 0 ORDER BY nid",
        list(nids),
        EventFlag.REJECTED,
    )
    return [decode_event_id(row["event_id"]) for row in rows]


def _stored_ids(event_ids: Iterable[str]) -> list[bytes]:
    """The stored forms of event IDs; what can be the ID of no event has none."""
    stored_ids = []
    for event_id in event_ids:
        try:
            stored_ids.append(encode_event_id(EventId(event_id)))
        except InvalidIdentifier:
            continue
    return stored_ids
