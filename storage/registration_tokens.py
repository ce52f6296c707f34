"""Table registration_tokens: what admins hand to those who may register."""

from __future__ import annotations

from dataclasses import dataclass

from storage.database import Transaction


@dataclass(frozen=True)
class RegistrationToken:
    """A token's limits and how often it has been used; None is no limit."""

    token_hash: bytes
    uses_allowed: int | None
    completed: int
    created_ts: int
    expires_ts: int | None


async def insert(
    tx: Transaction, token_hash: bytes, uses_allowed: int | None, created_ts: int, expires_ts: int | None
) -> None:
    """Store a new token."""
    query = """
        INSERT INTO registration_tokens (token_hash, uses_allowed, created_ts, expires_ts)
        VALUES ($1, $2, $3, $4)
    """
    await tx.execute(query, token_hash, uses_allowed, created_ts, expires_ts)


async def load_all(tx: Transaction) -> list[RegistrationToken]:
    """Every token, the oldest first."""
    query = """
        SELECT token_hash, uses_allowed, completed, created_ts, expires_ts FROM registration_tokens
        ORDER BY created_ts, token_hash
    """
    return [RegistrationToken(**row) for row in await tx.fetch(query)]


async def is_usable(tx: Transaction, token_hash: bytes, now: int) -> bool:
    """Whether an account can be registered with a token now."""
    query = """
        SELECT true FROM registration_tokens
        WHERE token_hash = $1 AND (uses_allowed IS NULL OR completed < uses_allowed)
          AND (expires_ts IS NULL OR expires_ts > $2)
    """
    return await tx.fetchval(query, token_hash, now) is not None


async def use(tx: Transaction, token_hash: bytes, now: int) -> bool:
    """Count one registration; False when the token cannot be used now."""
    query = """
        UPDATE registration_tokens SET completed = completed + 1
        WHERE token_hash = $1 AND (uses_allowed IS NULL OR completed < uses_allowed)
          AND (expires_ts IS NULL OR expires_ts > $2)
        RETURNING true
    """
    return await tx.fetchval(query, token_hash, now) is not None


async def delete(tx: Transaction, token_hash: bytes) -> bool:
    """Remove a token; False when there was none."""
    query = "DELETE FROM registration_tokens WHERE token_hash = $1 RETURNING true"
    return await tx.fetchval(query, token_hash) is not None
