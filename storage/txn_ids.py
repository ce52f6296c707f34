"""Table txn_ids: which event a client's transaction ID made. Rows are kept for a day."""

from __future__ import annotations

from typing import Final

from homeserver.protocol.event_hashes import decode_event_id
from homeserver.protocol.identifiers import EventId
from storage.database import Transaction
from storage.event_batch import TxnKey

KEPT_MS: Final = 24 * 3600 * 1000


async def find_txn(tx: Transaction, key: TxnKey) -> EventId | None:
    """The event that a transaction made; None for a new one."""
    query = """
        SELECT events.event_id FROM txn_ids JOIN rooms ON rooms.nid = txn_ids.room_nid
        JOIN events ON events.nid = txn_ids.event_nid
        WHERE rooms.room_id = $1 AND device_nid = $2 AND what = $3 AND txn = $4
    """
    found = await tx.fetchval(query, key.room_id, key.device_nid, key.what.encode(), key.txn_id.encode())
    return None if found is None else decode_event_id(found)


async def sweep(tx: Transaction, now_ms: int) -> None:
    """Forget transactions that are older than a day."""
    await tx.execute("DELETE FROM txn_ids WHERE ts < $1", now_ms - KEPT_MS)
