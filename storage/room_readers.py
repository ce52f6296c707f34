"""What decides which events of a room a user may see: the changes of its membership and of the visibility."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.protocol.events import StateKey
from homeserver.protocol.identifiers import RoomId
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.strict_json import JsonObject
from storage.database import Transaction
from storage.dictionaries import MEMBER_TYPE_NID
from storage.event_codec import decode_event
from storage.packed_state import Key
from storage.room_heads import RoomRef


@dataclass(frozen=True, slots=True)
class ViewChange:
    """A change of the room's history visibility or of the user's membership, at a version of the trunk."""

    ver: int
    is_member: bool
    content: JsonObject | None
    """Of the new event; None where the key was removed."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A user who reads a room, as the database has it at one moment."""

    room: RoomRef
    head_seq: int
    """The newest room_seq."""
    forgotten: bool
    """Whether the user left the room and forgot it."""
    changes: tuple[ViewChange, ...]
    """Those after the version that was asked for, in their order."""


async def state_key_of(tx: Transaction, key: StateKey) -> Key | None:
    """The numbers of a key of state, on the connection at hand; None where no event has it yet."""
    query = "SELECT event_types.nid, atoms.nid FROM event_types, atoms WHERE name = $1 AND s = $2"
    event_type, state_key = key
    row = await tx.fetchrow(query, event_type.encode(), state_key.encode())
    return None if row is None else (row[0], row[1])


async def load(
    tx: Transaction, room_id: RoomId, user_nid: int, visibility_key: Key, after: int
) -> Reader | None:
    """A user as a reader of a room, with what changed after a version; None for a room without events here.

    One statement, so that the changes are exactly those up to the head.
    """
    rows = await tx.fetch(
        """
        SELECT rooms.nid, rooms.version, head.room_seq, coalesce(member.forgotten, false) AS forgotten,
               changes.ver, changes.type_nid, events.flags, events.json
        FROM rooms
        CROSS JOIN LATERAL (
            SELECT room_seq FROM events WHERE room_nid = rooms.nid AND room_seq IS NOT NULL
            ORDER BY room_seq DESC LIMIT 1
        ) AS head
        LEFT JOIN memberships AS member ON member.user_nid = $2 AND member.room_nid = rooms.nid
        LEFT JOIN LATERAL (
            SELECT ver, type_nid, event_nid FROM room_state_log
            WHERE room_nid = rooms.nid AND type_nid = $3 AND skey_nid = $2 AND ver > $6
            UNION ALL
            SELECT ver, type_nid, event_nid FROM room_state_log
            WHERE room_nid = rooms.nid AND type_nid = $4 AND skey_nid = $5 AND ver > $6
        ) AS changes ON true
        LEFT JOIN events ON events.nid = changes.event_nid
        WHERE rooms.room_id = $1 ORDER BY changes.ver
        """,
        room_id,
        user_nid,
        MEMBER_TYPE_NID,
        *visibility_key,
        after,
    )
    if not rows:
        return None
    first = rows[0]
    return Reader(
        RoomRef(first["nid"], room_id, room_version(first["version"])),
        first["room_seq"],
        first["forgotten"],
        tuple(
            ViewChange(
                row["ver"],
                row["type_nid"] == MEMBER_TYPE_NID,
                None if row["json"] is None else decode_event(row["flags"], row["json"])["content"],
            )
            for row in rows
            if row["ver"] is not None
        ),
    )
