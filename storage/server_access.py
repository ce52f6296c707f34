"""Which servers may ask about a room: those that are in it, as far as its server ACL lets them."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.protocol.identifiers import RoomId, ServerName
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.strict_json import JsonObject
from storage.database import Transaction
from storage.event_flags import EventFlag
from storage.room_heads import RoomRef, stored_event


@dataclass(frozen=True, slots=True)
class AclEvent:
    """The current m.room.server_acl of a room."""

    nid: int
    is_redacted: bool


@dataclass(frozen=True, slots=True)
class RoomAccess:
    """What a room says about a server."""

    room: RoomRef
    is_in_room: bool
    """Whether a user of the server is in the room now."""
    left_seq: int | None
    """The room_seq of the event by which the server last left the room; None where it never did."""
    acl: AclEvent | None


async def load(tx: Transaction, room_id: RoomId, server_name: ServerName | None) -> RoomAccess | None:
    """What a room says about a server; None for a room that is not known here.

    `server_name`: None where only the ACL matters.
    """
    row = await tx.fetchrow(
        """
        SELECT rooms.nid, version, acl.nid AS acl_nid, acl.flags AS acl_flags,
            (
                SELECT max(from_seq) FROM room_servers
                WHERE room_nid = rooms.nid AND server_nid = (SELECT nid FROM atoms WHERE s = $2)
                  AND to_seq IS NULL
            ) IS NOT NULL AS is_in_room,
            (
                SELECT max(to_seq) FROM room_servers
                WHERE room_nid = rooms.nid AND server_nid = (SELECT nid FROM atoms WHERE s = $2)
            ) AS left_seq
        FROM rooms
        LEFT JOIN LATERAL (
            SELECT event_nid FROM room_state_log
            WHERE room_nid = rooms.nid AND skey_nid = (SELECT nid FROM atoms WHERE s = '')
              AND type_nid = (SELECT nid FROM event_types WHERE name = 'm.room.server_acl')
            ORDER BY ver DESC LIMIT 1
        ) AS newest ON true
        LEFT JOIN events AS acl ON acl.nid = newest.event_nid
        WHERE room_id = $1
        """,
        room_id,
        None if server_name is None else server_name.encode(),
    )
    if row is None:
        return None
    acl = None
    if row["acl_nid"] is not None:
        acl = AclEvent(row["acl_nid"], bool(row["acl_flags"] & EventFlag.REDACTED))
    room = RoomRef(row["nid"], room_id, room_version(row["version"]))
    return RoomAccess(room, row["is_in_room"], row["left_seq"], acl)


async def acl_content(tx: Transaction, room: RoomRef, acl: AclEvent) -> JsonObject:
    """The content of an m.room.server_acl event."""
    row = await tx.fetchrow("SELECT nid, event_id, flags, json FROM events WHERE nid = $1", acl.nid)
    return {} if row is None else stored_event(room, row).pdu.content
