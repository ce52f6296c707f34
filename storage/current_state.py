"""What rooms look like now, as committed by any process: read for several rooms at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import RoomId
from homeserver.protocol.room_versions import RoomVersion, room_version
from storage.database import Transaction
from storage.event_flags import EventFlag
from storage.memberships import Membership
from storage.room_heads import RoomRef, stored_event


@dataclass(frozen=True, slots=True)
class RoomMember:
    """What a user is in a room; `membership` is None for one who never had to do with it."""

    room_nid: int
    version: RoomVersion
    membership: Membership | None


async def member(tx: Transaction, room_id: RoomId, user_nid: int) -> RoomMember | None:
    """What a user is in a room; None for a room that is not known here."""
    query = """
        SELECT nid, version, membership
        FROM rooms LEFT JOIN memberships ON room_nid = nid AND user_nid = $2 WHERE room_id = $1
    """
    row = await tx.fetchrow(query, room_id, user_nid)
    if row is None:
        return None
    membership = None if row["membership"] is None else Membership(row["membership"])
    return RoomMember(row["nid"], room_version(row["version"]), membership)


async def fingerprints(
    tx: Transaction, room_nids: Iterable[int], type_nids: Iterable[int], skey_nid: int
) -> dict[int, tuple[int, ...]]:
    """Numbers for each room that are others once what `events` gives has changed."""
    query = f"""
        SELECT room.nid AS room_nid, array_agg(
            CASE WHEN events.flags & {int(EventFlag.REDACTED)} = 0 THEN events.nid ELSE -events.nid END
            ORDER BY events.nid
        ) AS numbers
        FROM {_NEWEST} GROUP BY room.nid
    """  # noqa: S608 -- nothing but constants
    rows = await tx.fetch(query, list(room_nids), list(type_nids), skey_nid)
    return {row["room_nid"]: tuple(row["numbers"]) for row in rows}


async def events(
    tx: Transaction, room_nids: Iterable[int], type_nids: Iterable[int], skey_nid: int
) -> dict[int, dict[int, Pdu]]:
    """The current events of some types and one state key: room -> type -> event."""
    query = f"""
        SELECT rooms.nid AS room_nid, room_id, version, type_nid, events.nid, event_id, events.flags, json
        FROM {_NEWEST} JOIN rooms ON rooms.nid = room.nid
    """  # noqa: S608 -- nothing but constants
    found: dict[int, dict[int, Pdu]] = {}
    for row in await tx.fetch(query, list(room_nids), list(type_nids), skey_nid):
        room = RoomRef(row["room_nid"], RoomId(row["room_id"]), room_version(row["version"]))
        found.setdefault(room.nid, {})[row["type_nid"]] = stored_event(room, row).pdu
    return found


_NEWEST: Final = """
    unnest($1::bigint[]) AS room(nid)
    CROSS JOIN unnest($2::int[]) AS type(nid)
    CROSS JOIN LATERAL (
        SELECT event_nid FROM room_state_log AS log
        WHERE log.room_nid = room.nid AND log.type_nid = type.nid AND log.skey_nid = $3
        ORDER BY log.ver DESC LIMIT 1
    ) AS newest
    JOIN events ON events.nid = newest.event_nid
"""
