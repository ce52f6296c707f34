"""Table state_snap: a room's whole state at some of its versions, so that reading it takes no long log."""

from __future__ import annotations

from typing import Final

from storage.database import Transaction
from storage.packed_state import PackedState

MIN_CHANGES: Final = 1000
"""So many changes at least lie between two snapshots of a room."""


async def newest(tx: Transaction, room_nid: int, ver: int) -> tuple[int, PackedState] | None:
    """The newest snapshot at or before a version, with its own version; None where there is none."""
    query = """
        SELECT ver, entries FROM state_snap WHERE room_nid = $1 AND ver <= $2 ORDER BY ver DESC LIMIT 1
    """
    row = await tx.fetchrow(query, room_nid, ver)
    return None if row is None else (row["ver"], PackedState.stored(row["entries"]))


async def due_version(tx: Transaction, room_nid: int) -> int | None:
    """The version of which a snapshot is to be made now; None while the newest one still serves.

    One is due when after the newest lie more changes than that has entries, and more than MIN_CHANGES.
    """
    query = """
        SELECT changes.newest FROM (SELECT $1::bigint AS nid) AS room
        LEFT JOIN LATERAL (
            SELECT ver, n FROM state_snap WHERE room_nid = room.nid ORDER BY ver DESC LIMIT 1
        ) AS snap ON true
        CROSS JOIN LATERAL (
            SELECT count(*) AS n, max(ver) AS newest FROM room_state_log
            WHERE room_nid = room.nid AND ver > coalesce(snap.ver, -1)
        ) AS changes
        WHERE changes.n > greatest($2::bigint, snap.n)
    """
    found: int | None = await tx.fetchval(query, room_nid, MIN_CHANGES)
    return found


async def insert(tx: Transaction, room_nid: int, ver: int, state: PackedState) -> None:
    """Store a snapshot; nothing happens where there is one of this version."""
    query = """
        INSERT INTO state_snap (room_nid, ver, n, entries) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING
    """
    await tx.execute(query, room_nid, ver, len(state), state.compressed)
