"""What decides which events of rooms a user may see: the changes of its membership and of the visibility."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from homeserver.protocol.events import StateKey
from homeserver.protocol.identifiers import RoomId
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.strict_json import JsonObject
from storage.database import Transaction
from storage.dictionaries import MEMBER_TYPE_NID
from storage.event_codec import decode_event
from storage.memberships import Membership
from storage.packed_state import Key
from storage.room_heads import RoomRef


@dataclass(frozen=True, slots=True)
class ViewChange:
    """A change of the room's history visibility or of the user's membership, at a version of the trunk."""

    ver: int
    is_member: bool
    event_nid: int
    """0 where the key was removed."""
    membership: str | None
    """Of the user's newest member event, which need not be decoded."""
    arrived: bool
    """Whether the event came just then: otherwise a resolution, or a join after an absence, brought it."""
    flags: int | None
    json: bytes | None

    @property
    def content(self) -> JsonObject | None:
        """The content of the new event; None where the key was removed."""
        if self.json is None or self.flags is None:
            return None
        content: JsonObject = decode_event(self.flags, self.json)["content"]
        return content


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
    tx: Transaction, user_nid: int, visibility_key: Key, after: Mapping[RoomId, int]
) -> dict[RoomId, Reader]:
    """A user as a reader of rooms, each with what changed after a version; without those that have no events.

    One statement, so that the changes are exactly those up to the head.
    """
    rows = await tx.fetch(
        """
        SELECT rooms.room_id, rooms.nid, rooms.version, head.room_seq,
               member.forgotten, changes.ver, changes.is_member, changes.event_nid,
               CASE WHEN is_member AND changes.event_nid = member.event_nid THEN membership END,
               events.nid IS NULL OR (events.room_seq = changes.ver AND events.sub = 0) IS TRUE AS arrived,
               events.flags, events.json
        FROM unnest($5::text[], $6::bigint[]) AS wanted(room_id, after)
        JOIN rooms ON rooms.room_id = wanted.room_id
        CROSS JOIN LATERAL (
            SELECT room_seq FROM events WHERE room_nid = rooms.nid AND room_seq IS NOT NULL
            ORDER BY room_seq DESC LIMIT 1
        ) AS head
        LEFT JOIN memberships AS member ON member.user_nid = $1 AND member.room_nid = rooms.nid
        LEFT JOIN LATERAL (
            SELECT ver, true AS is_member, event_nid FROM room_state_log
            WHERE room_nid = rooms.nid AND type_nid = $2 AND skey_nid = $1 AND ver > wanted.after
            UNION ALL
            SELECT ver, false, event_nid FROM room_state_log
            WHERE room_nid = rooms.nid AND type_nid = $3 AND skey_nid = $4 AND ver > wanted.after
        ) AS changes ON true
        LEFT JOIN events ON events.nid = changes.event_nid
            AND (is_member AND changes.event_nid = member.event_nid) IS NOT TRUE
        ORDER BY rooms.nid, changes.ver
        """,
        user_nid,
        MEMBER_TYPE_NID,
        *visibility_key,
        list(after),
        list(after.values()),
    )
    changes: dict[RoomId, list[ViewChange]] = {}
    of_rooms: dict[RoomId, tuple[RoomRef, int, bool]] = {}
    for (
        room_id,
        nid,
        version,
        head_seq,
        forgotten,
        ver,
        is_member,
        event_nid,
        now,
        arrived,
        flags,
        json,
    ) in rows:
        if room_id not in of_rooms:
            room = RoomRef(nid, room_id, room_version(version))
            of_rooms[room_id] = room, head_seq, bool(forgotten)
            changes[room_id] = []
        if ver is not None:
            membership = None if now is None else Membership(now).name.lower()
            changes[room_id].append(ViewChange(ver, is_member, event_nid, membership, arrived, flags, json))
    return {room_id: Reader(*facts, tuple(changes[room_id])) for room_id, facts in of_rooms.items()}
