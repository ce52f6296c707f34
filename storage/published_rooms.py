"""Table published_rooms: the rooms that the published room directory lists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from homeserver.protocol.identifiers import RoomId
from storage.database import Transaction


@dataclass(frozen=True, slots=True)
class PublishedRoom:
    """A room of the directory."""

    room_nid: int
    room_id: RoomId
    joined_members: int


async def is_published(tx: Transaction, room_id: RoomId) -> bool | None:
    """Whether the directory lists a room; None for a room that is not known here."""
    query = """
        SELECT EXISTS (SELECT FROM published_rooms WHERE room_nid = nid) FROM rooms WHERE room_id = $1
    """
    published: bool | None = await tx.fetchval(query, room_id)
    return published


async def add(tx: Transaction, room_id: RoomId) -> None:
    """List a room."""
    query = """
        INSERT INTO published_rooms (room_nid) SELECT nid FROM rooms WHERE room_id = $1
        ON CONFLICT (room_nid) DO NOTHING
    """
    await tx.execute(query, room_id)


async def remove(tx: Transaction, room_id: RoomId) -> None:
    """List a room no more."""
    query = "DELETE FROM published_rooms USING rooms WHERE nid = room_nid AND room_id = $1"
    await tx.execute(query, room_id)


async def move(tx: Transaction, from_room_id: RoomId, to_room_id: RoomId) -> None:
    """List another room instead of this one, if this one is listed."""
    query = """
        WITH unlisted AS (
            DELETE FROM published_rooms USING rooms WHERE nid = room_nid AND room_id = $1 RETURNING room_nid
        )
        INSERT INTO published_rooms (room_nid)
        SELECT nid FROM rooms WHERE room_id = $2 AND EXISTS (SELECT FROM unlisted)
        ON CONFLICT (room_nid) DO NOTHING
    """
    await tx.execute(query, from_room_id, to_room_id)


async def by_members(tx: Transaction, versions: Iterable[str]) -> list[PublishedRoom]:
    """The listed rooms of these room versions that have members, those with the most first."""
    query = """
        SELECT nid, room_id, joined FROM published_rooms
        JOIN rooms ON nid = room_nid
        CROSS JOIN LATERAL (
            SELECT count(*) AS joined FROM memberships
            WHERE memberships.room_nid = nid AND membership = 1
        ) AS members
        WHERE joined > 0 AND version = ANY($1::text[])
        ORDER BY joined DESC, nid
    """
    rows = await tx.fetch(query, list(versions))
    return [PublishedRoom(row["nid"], RoomId(row["room_id"]), row["joined"]) for row in rows]
