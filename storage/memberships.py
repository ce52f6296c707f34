"""Table memberships: who is what in which room, as the rooms' current state has it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from homeserver.protocol.identifiers import RoomId, ServerName, UserId
from storage.database import Transaction

COUNTED_MEMBERS: Final = 2000
"""Of so many members the servers are counted."""


class Membership(IntEnum):
    """The values of memberships.membership."""

    JOIN = 1
    INVITE = 2
    KNOCK = 3
    LEAVE = 4
    BAN = 5

    @classmethod
    def of(cls, membership: object) -> Membership:
        """The value for content.membership of an authorised event."""
        return cls[str(membership).upper()]


async def rooms_of(tx: Transaction, user_nid: int, membership: Membership) -> list[RoomId]:
    """The rooms in which a user has this membership."""
    query = """
        SELECT room_id FROM memberships JOIN rooms ON rooms.nid = room_nid
        WHERE user_nid = $1 AND membership = $2 ORDER BY room_id
    """
    return [RoomId(row["room_id"]) for row in await tx.fetch(query, user_nid, membership)]


async def event_nids(tx: Transaction, room_nid: int, membership: Membership) -> list[int]:
    """The numbers of the member events of all users who have this membership in a room."""
    query = "SELECT array_agg(event_nid) FROM memberships WHERE room_nid = $1 AND membership = $2"
    return await tx.fetchval(query, room_nid, membership) or []


async def joined_users_of_server(
    tx: Transaction, room_id: RoomId, server_name: ServerName, most: int
) -> list[UserId]:
    """Some joined members of a room who belong to a server."""
    query = """
        SELECT s FROM memberships JOIN rooms ON rooms.nid = room_nid JOIN atoms ON atoms.nid = user_nid
        WHERE room_id = $1 AND membership = 1 AND right(convert_from(s, 'UTF8'), length($2) + 1) = ':' || $2
        LIMIT $3
    """
    return [UserId(row["s"].decode()) for row in await tx.fetch(query, room_id, server_name, most)]


async def servers_of(tx: Transaction, room_id: RoomId, most: int) -> list[ServerName]:
    """Servers of joined members of a room, those with the most first; of a large room, of some members."""
    query = """
        SELECT substring(convert_from(s, 'UTF8') FROM ':(.*)') AS server_name FROM (
            SELECT user_nid FROM memberships JOIN rooms ON rooms.nid = room_nid
            WHERE room_id = $1 AND membership = 1 LIMIT $3
        ) AS members
        JOIN atoms ON atoms.nid = user_nid
        GROUP BY server_name ORDER BY count(*) DESC, server_name LIMIT $2
    """
    rows = await tx.fetch(query, room_id, most, COUNTED_MEMBERS)
    return [ServerName(row["server_name"]) for row in rows]


async def forget(tx: Transaction, user_nid: int, room_id: RoomId) -> bool:
    """Forget a room that the user has left; False when the user has not left it."""
    query = """
        UPDATE memberships SET forgotten = true FROM rooms
        WHERE rooms.nid = room_nid AND room_id = $2 AND user_nid = $1 AND membership IN (4, 5) RETURNING true
    """
    return bool(await tx.fetchval(query, user_nid, room_id))


@dataclass(frozen=True, slots=True)
class MembershipRow:
    """What a user is in a room."""

    room_nid: int
    room_id: RoomId
    version: str
    membership: Membership
    event_nid: int
    pos: int
    forgotten: bool


async def of_user(tx: Transaction, user_nid: int) -> list[MembershipRow]:
    """All rooms that a user has, or had, to do with."""
    query = """
        SELECT room_nid, room_id, version, membership, event_nid, pos, forgotten
        FROM memberships JOIN rooms ON rooms.nid = room_nid WHERE user_nid = $1
    """
    return [
        MembershipRow(
            row["room_nid"],
            RoomId(row["room_id"]),
            row["version"],
            Membership(row["membership"]),
            row["event_nid"],
            row["pos"],
            row["forgotten"],
        )
        for row in await tx.fetch(query, user_nid)
    ]
