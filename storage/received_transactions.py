"""Table received_transactions: what other servers were answered, for when they repeat themselves."""

from __future__ import annotations

from typing import Final

from homeserver.protocol.identifiers import ServerName
from storage.database import Transaction

KEPT_MS: Final = 24 * 3600 * 1000


async def find(tx: Transaction, origin: ServerName, txn_id: str) -> bytes | None:
    """The answer to a transaction that was received before; None for a new one."""
    query = "SELECT response FROM received_transactions WHERE origin = $1 AND txn_id = $2"
    response: bytes | None = await tx.fetchval(query, origin, txn_id)
    return response


async def save(tx: Transaction, origin: ServerName, txn_id: str, response: bytes, recv_ts: int) -> None:
    """Remember the answer to a transaction; without waiting for the disk.

    If a crash takes it, a repeated transaction finds the events stored, and is answered the same.
    """
    query = """
        WITH unhurried AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
        INSERT INTO received_transactions (origin, txn_id, recv_ts, response)
        SELECT $1, $2, $3::bigint, $4 FROM unhurried
        ON CONFLICT DO NOTHING
    """
    await tx.execute(query, origin, txn_id, recv_ts, response)


async def sweep(tx: Transaction, now: int) -> None:
    """Forget what no server repeats any more."""
    await tx.execute("DELETE FROM received_transactions WHERE recv_ts < $1", now - KEPT_MS)
