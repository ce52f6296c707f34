"""Table ui_auth_sessions: requests that wait until their user has proved who they are."""

from __future__ import annotations

from dataclasses import dataclass

from storage.database import Transaction

NOBODY = 0
"""The user number of a session that is begun before anyone is logged in."""


@dataclass(frozen=True)
class UiAuthSession:
    """A session; `params` and `completed` are JSON."""

    session_hash: bytes
    user_nid: int
    operation: bytes
    params: bytes
    completed: bytes
    created_ts: int
    expires_ts: int


async def insert(tx: Transaction, session: UiAuthSession) -> None:
    """Store a new session."""
    query = """
        INSERT INTO ui_auth_sessions
            (session_hash, user_nid, operation, params, completed, created_ts, expires_ts)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
    """
    values = (session.session_hash, session.user_nid, session.operation, session.params, session.completed)
    await tx.execute(query, *values, session.created_ts, session.expires_ts)


async def load(tx: Transaction, session_hash: bytes, now: int) -> UiAuthSession | None:
    """A session that has not expired."""
    query = """
        SELECT session_hash, user_nid, operation, params, completed, created_ts, expires_ts
        FROM ui_auth_sessions WHERE session_hash = $1 AND expires_ts > $2
    """
    row = await tx.fetchrow(query, session_hash, now)
    return None if row is None else UiAuthSession(**row)


async def update(tx: Transaction, session_hash: bytes, params: bytes, completed: bytes) -> None:
    """Remember the newest parameters and the stages that are complete."""
    query = "UPDATE ui_auth_sessions SET params = $2, completed = $3 WHERE session_hash = $1"
    await tx.execute(query, session_hash, params, completed)


async def delete(tx: Transaction, session_hash: bytes) -> bool:
    """End a session; False when it had ended already."""
    query = "DELETE FROM ui_auth_sessions WHERE session_hash = $1 RETURNING true"
    return await tx.fetchval(query, session_hash) is not None


async def delete_of_user(tx: Transaction, user_nid: int) -> None:
    """End every session of a user."""
    await tx.execute("DELETE FROM ui_auth_sessions WHERE user_nid = $1", user_nid)


async def delete_expired(tx: Transaction, now: int) -> None:
    """Remove what has expired."""
    await tx.execute("DELETE FROM ui_auth_sessions WHERE expires_ts <= $1", now)


async def keep_newest(tx: Transaction, user_nid: int, count: int) -> None:
    """Remove all sessions of a user, or of those not logged in, but the newest."""
    query = """
        DELETE FROM ui_auth_sessions WHERE session_hash IN (
            SELECT session_hash FROM ui_auth_sessions WHERE user_nid = $1 ORDER BY created_ts DESC OFFSET $2
        )
    """
    await tx.execute(query, user_nid, count)
