"""Table ended_sessions: sessions that have ended or changed, for the other processes of this server.

Triggers write the rows. Each names the transaction that wrote it, and a reader remembers the snapshot that it
has read in: what that snapshot did not see is new, in whatever order transactions begin and commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from storage.database import Transaction

KEPT: Final = timedelta(hours=1)
READ_WITHIN: Final = timedelta(minutes=30)
MOST_READ: Final = 20_000


@dataclass(frozen=True, slots=True)
class Position:
    """How far someone has read: the snapshot, as PostgreSQL writes it, and when that was by its clock.

    `server_start` tells a PostgreSQL from one that takes its place, of which the snapshot says nothing.
    """

    snapshot: str
    at: datetime
    server_start: datetime


async def read(tx: Transaction, since: Position | None) -> tuple[list[int] | None, Position]:
    """The sessions that ended or changed after a position, and the position that this reads up to.

    None instead of sessions where any may have: there is no position to begin at, or it is another server's,
    rows may have been swept since then, or there are more than `MOST_READ`.
    """
    query = """
        SELECT pg_current_snapshot()::text AS snapshot, clock_timestamp() AS at,
               pg_postmaster_start_time() AS server_start,
               ARRAY(
                   SELECT session_id FROM ended_sessions
                   WHERE written_by >= pg_snapshot_xmin($1::text::pg_snapshot)
                     AND NOT pg_visible_in_snapshot(written_by, $1::text::pg_snapshot)
                   LIMIT $2
               ) AS session_ids
    """
    row = await tx.fetchrow(query, None if since is None else since.snapshot, MOST_READ + 1)
    assert row is not None
    position = Position(row["snapshot"], row["at"], row["server_start"])
    is_next = (
        since is not None
        and since.server_start == position.server_start
        and position.at - since.at <= READ_WITHIN
    )
    session_ids: list[int] = row["session_ids"]
    return session_ids if is_next and len(session_ids) <= MOST_READ else None, position


async def sweep(tx: Transaction) -> None:
    """Forget what every reader has read long ago."""
    await tx.execute("DELETE FROM ended_sessions WHERE ts < clock_timestamp() - $1::interval", KEPT)
