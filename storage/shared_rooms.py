"""Rooms that other servers name: whether they are known, and whether this server is in them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import asyncpg

from homeserver.protocol.identifiers import RoomId
from homeserver.protocol.room_versions import ROOM_VERSIONS
from storage.database import Transaction
from storage.room_heads import RoomRef


@dataclass(frozen=True, slots=True)
class SharedRoom:
    """A room that this database knows."""

    ref: RoomRef
    is_resident: bool
    """Whether a user of this server is in it."""
    is_joining: bool
    """Whether a user of this server is about to be, as the first one."""


_COLUMNS: Final = """
    nid, room_id, version,
    (SELECT max(from_seq) FROM room_servers WHERE room_nid = nid AND server_nid = $2 AND to_seq IS NULL)
        IS NOT NULL AS is_resident,
    EXISTS (SELECT FROM room_joins WHERE room_nid = nid) AS is_joining
"""


async def find_one(tx: Transaction, room_id: RoomId, own_server_nid: int) -> SharedRoom | None:
    """A room if it is known, and of a version that we speak."""
    query = f"SELECT {_COLUMNS} FROM rooms WHERE room_id = $1"  # noqa: S608
    row = await tx.fetchrow(query, room_id, own_server_nid)
    return None if row is None or row["version"] not in ROOM_VERSIONS else _shared_room(row)


async def find(
    tx: Transaction, room_ids: Collection[RoomId], own_server_nid: int
) -> dict[RoomId, SharedRoom]:
    """Those of some rooms that are known, and of a version that we speak."""
    query = f"SELECT {_COLUMNS} FROM rooms WHERE room_id = ANY($1::text[])"  # noqa: S608
    rows = await tx.fetch(query, list(room_ids), own_server_nid)
    found = (_shared_room(row) for row in rows if row["version"] in ROOM_VERSIONS)
    return {room.ref.room_id: room for room in found}


def _shared_room(row: asyncpg.Record) -> SharedRoom:
    ref = RoomRef(row["nid"], RoomId(row["room_id"]), ROOM_VERSIONS[row["version"]])
    return SharedRoom(ref, row["is_resident"], row["is_joining"])
