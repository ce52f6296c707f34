"""Table memberships: who is what in which room, as the rooms' current state has it.

What a user is who was invited to a room that this server is not in is in table oob_membership; of two rows of
one user and room the newer one counts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from homeserver.protocol.identifiers import RoomId, ServerName, UserId
from storage.database import Transaction

COUNTED_MEMBERS: Final = 2000
"""Of so many members the servers are counted."""


_NEWEST_OF_USER: Final = """
    SELECT DISTINCT ON (room_nid) room_nid, membership, event_nid, pos, forgotten, out_of_band FROM (
        SELECT room_nid, membership, event_nid, pos, forgotten, false AS out_of_band
        FROM memberships WHERE user_nid = $1
        UNION ALL
        SELECT room_nid, membership, event_nid, pos, forgotten, true
        FROM oob_membership WHERE user_nid = $1
    ) AS of_user ORDER BY room_nid, pos DESC
"""


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
    """The rooms in which a user has this membership, whether this server is in them or not."""
    query = f"""
        SELECT room_id FROM ({_NEWEST_OF_USER}) AS newest JOIN rooms ON rooms.nid = room_nid
        WHERE membership = $2 ORDER BY room_id
    """  # noqa: S608
    return [RoomId(row["room_id"]) for row in await tx.fetch(query, user_nid, membership)]


async def event_nids(tx: Transaction, room_nid: int, membership: Membership) -> list[int]:
    """The numbers of the member events of all users who have this membership in a room."""
    query = "SELECT array_agg(event_nid) FROM memberships WHERE room_nid = $1 AND membership = $2"
    return await tx.fetchval(query, room_nid, membership) or []


async def joined_among(tx: Transaction, room_nid: int, user_ids: Collection[UserId]) -> set[UserId]:
    """Those of some users who are in a room."""
    query = """
        SELECT s FROM atoms JOIN memberships ON user_nid = atoms.nid
        WHERE s = ANY($2::bytea[]) AND room_nid = $1 AND membership = 1
    """
    rows = await tx.fetch(query, room_nid, [user_id.encode() for user_id in user_ids])
    return {UserId(row["s"].decode()) for row in rows}


async def joined_users_of_server(
    tx: Transaction, room_id: RoomId, server_name: ServerName, most: int
) -> list[UserId]:
    """Some joined members of a room who belong to a server."""
    query = """
        SELECT s FROM memberships JOIN rooms ON rooms.nid = room_nid JOIN atoms ON atoms.nid = user_nid
        WHERE room_id = $1 AND membership = 1 AND server_nid = (SELECT nid FROM atoms WHERE s = $2) LIMIT $3
    """
    return [UserId(row["s"].decode()) for row in await tx.fetch(query, room_id, server_name.encode(), most)]


async def servers_of(tx: Transaction, room_id: RoomId, most: int) -> list[ServerName]:
    """Servers of joined members of a room, those with the most first; of a large room, of some members."""
    query = """
        SELECT s FROM (
            SELECT server_nid, count(*) AS members FROM (
                SELECT server_nid FROM memberships JOIN rooms ON rooms.nid = room_nid
                WHERE room_id = $1 AND membership = 1 LIMIT $3
            ) AS counted
            GROUP BY server_nid ORDER BY members DESC, server_nid LIMIT $2
        ) AS servers
        JOIN atoms ON atoms.nid = server_nid ORDER BY members DESC, server_nid
    """
    rows = await tx.fetch(query, room_id, most, COUNTED_MEMBERS)
    return [ServerName(row["s"].decode()) for row in rows]


async def forget(tx: Transaction, user_nid: int, room_id: RoomId) -> bool:
    """Forget a room that the user has left; False when the user has not left it."""
    query = f"""
        WITH left_room AS (
            SELECT room_nid FROM ({_NEWEST_OF_USER}) AS newest JOIN rooms ON rooms.nid = room_nid
            WHERE room_id = $2 AND membership IN (4, 5)
        ), inside AS (
            UPDATE memberships AS own SET forgotten = true FROM left_room
            WHERE own.room_nid = left_room.room_nid AND own.user_nid = $1
        ), outside AS (
            UPDATE oob_membership AS own SET forgotten = true FROM left_room
            WHERE own.room_nid = left_room.room_nid AND own.user_nid = $1
        )
        SELECT EXISTS (SELECT FROM left_room)
    """  # noqa: S608
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
    out_of_band: bool
    """Whether this server was not in the room then: the room's own state does not tell."""


async def of_user(tx: Transaction, user_nid: int) -> list[MembershipRow]:
    """All rooms that a user has, or had, to do with, those of the newest changes last."""
    query = f"""
        SELECT room_nid, room_id, version, membership, event_nid, pos, forgotten, out_of_band
        FROM ({_NEWEST_OF_USER}) AS newest JOIN rooms ON rooms.nid = room_nid ORDER BY pos
    """  # noqa: S608
    return [
        MembershipRow(
            row["room_nid"],
            RoomId(row["room_id"]),
            row["version"],
            Membership(row["membership"]),
            row["event_nid"],
            row["pos"],
            row["forgotten"],
            row["out_of_band"],
        )
        for row in await tx.fetch(query, user_nid)
    ]
