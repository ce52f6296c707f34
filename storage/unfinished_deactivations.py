"""Table unfinished_deactivations: deactivated accounts whose rooms are still to be left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from homeserver.protocol.identifiers import UserId
from storage.database import Transaction

FIRST_DELAY_MS: Final = 60_000
LONGEST_DELAY_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class UnfinishedDeactivation:
    """A deactivated user; `attempts` is how often it was taken, the last time included."""

    user_nid: int
    user_id: UserId
    attempts: int


async def add(tx: Transaction, user_nid: int) -> None:
    """A user's rooms are to be left, from now on."""
    query = """
        INSERT INTO unfinished_deactivations (user_nid) VALUES ($1)
        ON CONFLICT (user_nid) DO UPDATE SET attempts = 0, next_try_ts = 0
    """
    await tx.execute(query, user_nid)


async def take(tx: Transaction, now_ms: int) -> UnfinishedDeactivation | None:
    """One whose turn it is; it comes up again, later each time, until `remove`. None: it is nobody's turn."""
    query = """
        UPDATE unfinished_deactivations
        SET attempts = attempts + 1, next_try_ts = $1 + least($2::bigint << least(attempts, 16), $3)
        FROM atoms
        WHERE nid = user_nid AND user_nid = (
            SELECT user_nid FROM unfinished_deactivations WHERE next_try_ts <= $1
            ORDER BY next_try_ts, user_nid LIMIT 1 FOR UPDATE SKIP LOCKED
        )
        RETURNING user_nid, s AS user_id, attempts
    """
    row = await tx.fetchrow(query, now_ms, FIRST_DELAY_MS, LONGEST_DELAY_MS)
    return None if row is None else UnfinishedDeactivation(**{**row, "user_id": row["user_id"].decode()})


async def remove(tx: Transaction, user_nid: int) -> None:
    """Nothing remains to be left."""
    await tx.execute("DELETE FROM unfinished_deactivations WHERE user_nid = $1", user_nid)
