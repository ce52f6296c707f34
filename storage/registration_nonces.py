"""Table registration_nonces: what the next request of the shared-secret registration must repeat."""

from __future__ import annotations

from storage.database import Transaction


async def insert(tx: Transaction, nonce_hash: bytes, expires_ts: int) -> None:
    """Store a new nonce."""
    query = "INSERT INTO registration_nonces (nonce_hash, expires_ts) VALUES ($1, $2)"
    await tx.execute(query, nonce_hash, expires_ts)


async def take(tx: Transaction, nonce_hash: bytes, now: int) -> bool:
    """Remove a nonce; False when it was not there or had expired."""
    query = "DELETE FROM registration_nonces WHERE nonce_hash = $1 RETURNING expires_ts > $2"
    return bool(await tx.fetchval(query, nonce_hash, now))


async def delete_expired(tx: Transaction, now: int) -> None:
    """Remove what has expired."""
    await tx.execute("DELETE FROM registration_nonces WHERE expires_ts <= $1", now)


async def keep_newest(tx: Transaction, count: int) -> None:
    """Remove all nonces but the newest."""
    query = """
        DELETE FROM registration_nonces WHERE nonce_hash IN (
            SELECT nonce_hash FROM registration_nonces ORDER BY expires_ts DESC OFFSET $1
        )
    """
    await tx.execute(query, count)
