"""Table filters: the filters that users have saved."""

from __future__ import annotations

from storage.database import Transaction


async def save(tx: Transaction, user_nid: int, filter_id: str, json: bytes, saved_ts: int) -> None:
    """Store a filter, or note that it was saved once more."""
    query = """
        INSERT INTO filters (user_nid, filter_id, json, saved_ts) VALUES ($1, $2, $3, $4)
        ON CONFLICT (user_nid, filter_id) DO UPDATE SET saved_ts = excluded.saved_ts
    """
    await tx.execute(query, user_nid, filter_id, json, saved_ts)


async def delete_oldest(tx: Transaction, user_nid: int, filter_id: str, keep: int) -> None:
    """Delete all of a user's filters but this one and the others that were saved last, `keep` in all."""
    query = """
        DELETE FROM filters WHERE user_nid = $1 AND filter_id IN (
            SELECT filter_id FROM filters WHERE user_nid = $1
            ORDER BY filter_id = $2 DESC, saved_ts DESC, filter_id OFFSET $3
        )
    """
    await tx.execute(query, user_nid, filter_id, keep)


async def load(tx: Transaction, user_nid: int, filter_id: str) -> bytes | None:
    """A filter's JSON; None for an ID that the user has no filter of."""
    query = "SELECT json FROM filters WHERE user_nid = $1 AND filter_id = $2"
    json: bytes | None = await tx.fetchval(query, user_nid, filter_id)
    return json
