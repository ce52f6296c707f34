"""Table room_aliases: which room an alias of this server points to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from homeserver.protocol.identifiers import RoomAlias, RoomId
from storage.database import Transaction


@dataclass(frozen=True)
class StoredAlias:
    """Where an alias points to, and who made it."""

    room_id: RoomId
    creator_nid: int


async def insert(tx: Transaction, alias: RoomAlias, room_id: RoomId, creator_nid: int) -> bool:
    """Store a new alias of a room that is known here; False when the alias is taken."""
    query = """
        INSERT INTO room_aliases (room_alias, room_nid, creator_nid)
        SELECT $1, nid, $3 FROM rooms WHERE room_id = $2
        ON CONFLICT (room_alias) DO NOTHING RETURNING true
    """
    return await tx.fetchval(query, alias, room_id, creator_nid) is not None


async def load(tx: Transaction, alias: RoomAlias) -> StoredAlias | None:
    """What is stored about an alias; None for one that does not exist."""
    query = """
        SELECT room_id, creator_nid FROM room_aliases JOIN rooms ON nid = room_nid WHERE room_alias = $1
    """
    row = await tx.fetchrow(query, alias)
    return None if row is None else StoredAlias(RoomId(row["room_id"]), row["creator_nid"])


async def rooms_of(tx: Transaction, aliases: Iterable[RoomAlias]) -> dict[RoomAlias, RoomId]:
    """The rooms that aliases point to, those that do not exist left out."""
    query = """
        SELECT room_alias, room_id FROM room_aliases JOIN rooms ON nid = room_nid
        WHERE room_alias = ANY($1::text[])
    """
    rows = await tx.fetch(query, list(aliases))
    return {RoomAlias(row["room_alias"]): RoomId(row["room_id"]) for row in rows}


async def of_room(tx: Transaction, room_id: RoomId) -> list[RoomAlias]:
    """The aliases of a room, in the order of their code points."""
    query = """
        SELECT room_alias FROM room_aliases JOIN rooms ON nid = room_nid
        WHERE room_id = $1 ORDER BY room_alias COLLATE "C"
    """
    return [RoomAlias(row["room_alias"]) for row in await tx.fetch(query, room_id)]


async def delete(tx: Transaction, alias: RoomAlias, room_id: RoomId) -> bool:
    """Delete an alias that points to this room; False when there is none."""
    query = """
        DELETE FROM room_aliases USING rooms
        WHERE nid = room_nid AND room_alias = $1 AND room_id = $2 RETURNING true
    """
    return await tx.fetchval(query, alias, room_id) is not None


async def move(tx: Transaction, from_room_id: RoomId, to_room_id: RoomId) -> None:
    """Let all aliases of a room point to another one."""
    query = """
        UPDATE room_aliases SET room_nid = new_room.nid
        FROM rooms AS old_room, rooms AS new_room
        WHERE room_nid = old_room.nid AND old_room.room_id = $1 AND new_room.room_id = $2
    """
    await tx.execute(query, from_room_id, to_room_id)
