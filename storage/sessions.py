"""Table sessions: the logins that access tokens name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from homeserver.protocol.identifiers import DeviceId, UserId
from storage.database import Transaction


@dataclass(frozen=True)
class Session:
    """A session with its device and user.

    `parent_nid` is that of the refresh token asked about; None when the session has no such token.
    """

    session_id: int
    current_refresh_nid: int
    parent_nid: int | None
    device_nid: int
    device_id: DeviceId
    user_nid: int
    user_id: UserId
    is_admin: bool
    is_guest: bool


async def insert(tx: Transaction, session_id: int, device_nid: int, created_ts: int) -> None:
    """Begin the session of a device that has none."""
    query = "INSERT INTO sessions (session_id, device_nid, created_ts) VALUES ($1, $2, $3)"
    await tx.execute(query, session_id, device_nid, created_ts)


async def load(tx: Transaction, session_id: int, refresh_nid: int | None) -> Session | None:
    """A session whose user is active, and the parent of one of its refresh tokens."""
    query = """
        SELECT sessions.session_id, current_refresh_nid, parent_nid, device_nid, device_id,
               users.user_nid, atoms.s AS user_id, is_admin, is_guest
        FROM sessions
        JOIN devices USING (device_nid)
        JOIN users USING (user_nid)
        JOIN atoms ON atoms.nid = users.user_nid
        LEFT JOIN refresh_tokens ON refresh_tokens.session_id = $1 AND refresh_nid = $2
        WHERE sessions.session_id = $1 AND NOT is_deactivated
    """
    row = await tx.fetchrow(query, session_id, refresh_nid)
    return None if row is None else Session(**{**row, "user_id": row["user_id"].decode()})


async def advance(tx: Transaction, session_id: int, old_refresh_nid: int, new_refresh_nid: int) -> bool:
    """Make another refresh token the current one; False when `old_refresh_nid` no longer was."""
    query = """
        UPDATE sessions SET current_refresh_nid = $3 WHERE session_id = $1 AND current_refresh_nid = $2
        RETURNING true
    """
    return await tx.fetchval(query, session_id, old_refresh_nid, new_refresh_nid) is not None


async def of_devices(tx: Transaction, device_nids: Sequence[int]) -> list[int]:
    """The sessions of devices."""
    query = "SELECT session_id FROM sessions WHERE device_nid = ANY($1::bigint[])"
    return [row["session_id"] for row in await tx.fetch(query, device_nids)]


async def of_user(tx: Transaction, user_nid: int) -> list[int]:
    """The sessions of a user."""
    query = "SELECT session_id FROM sessions JOIN devices USING (device_nid) WHERE user_nid = $1"
    return [row["session_id"] for row in await tx.fetch(query, user_nid)]


async def delete(tx: Transaction, session_id: int) -> None:
    """End a session; its device stays."""
    await tx.execute("DELETE FROM sessions WHERE session_id = $1", session_id)


async def delete_of_device(tx: Transaction, device_nid: int) -> list[int]:
    """End the session of a device; returns its ID, if there was one."""
    query = "DELETE FROM sessions WHERE device_nid = $1 RETURNING session_id"
    return [row["session_id"] for row in await tx.fetch(query, device_nid)]
