"""Table refresh_tokens: the pairs of refresh and access token that sessions were given."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.protocol.identifiers import DeviceId, UserId
from storage.database import Transaction


@dataclass(frozen=True)
class RefreshToken:
    """A refresh token with its session."""

    refresh_nid: int
    parent_nid: int
    expires_ts: int
    session_id: int
    current_refresh_nid: int
    device_id: DeviceId
    user_id: UserId


async def insert(
    tx: Transaction, session_id: int, parent_nid: int, token_hash: bytes, expires_ts: int
) -> int:
    """Store a new refresh token; returns its number."""
    query = """
        INSERT INTO refresh_tokens (session_id, parent_nid, token_hash, expires_ts) VALUES ($1, $2, $3, $4)
        RETURNING refresh_nid
    """
    return int(await tx.fetchval(query, session_id, parent_nid, token_hash, expires_ts))


async def lock(tx: Transaction, token_hash: bytes) -> RefreshToken | None:
    """A refresh token of an active user; until the transaction ends its session stays as it is."""
    query = """
        SELECT refresh_nid, parent_nid, expires_ts, sessions.session_id, current_refresh_nid, device_id,
               atoms.s AS user_id
        FROM refresh_tokens
        JOIN sessions USING (session_id)
        JOIN devices USING (device_nid)
        JOIN users USING (user_nid)
        JOIN atoms ON atoms.nid = users.user_nid
        WHERE token_hash = $1 AND NOT is_deactivated
        FOR UPDATE OF sessions
    """
    row = await tx.fetchrow(query, token_hash)
    return None if row is None else RefreshToken(**{**row, "user_id": row["user_id"].decode()})


async def delete_expired(tx: Transaction, session_id: int, keep_nid: int, now: int) -> None:
    """Forget what a session can no longer use, except one token, which expired is still told from forged."""
    query = """
        DELETE FROM refresh_tokens WHERE session_id = $1 AND refresh_nid <> $2 AND expires_ts <= $3
    """
    await tx.execute(query, session_id, keep_nid, now)
