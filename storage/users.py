"""Table users: the accounts of this server."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.protocol.identifiers import UserId
from storage.database import Transaction


@dataclass(frozen=True)
class User:
    """An account; `password_hash` is None for one that has no password."""

    user_nid: int
    user_id: UserId
    password_hash: str | None
    is_admin: bool
    is_guest: bool
    is_deactivated: bool


async def insert(
    tx: Transaction,
    user_nid: int,
    *,
    password_hash: str | None,
    created_ts: int,
    user_type: str | None,
    is_admin: bool,
    is_guest: bool,
) -> bool:
    """Store a new account; False when the user ID is taken."""
    query = """
        INSERT INTO users (user_nid, password_hash, created_ts, user_type, is_admin, is_guest)
        VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (user_nid) DO NOTHING RETURNING true
    """
    values = (user_nid, password_hash, created_ts, user_type, is_admin, is_guest)
    return await tx.fetchval(query, *values) is not None


async def load(tx: Transaction, user_nid: int) -> User | None:
    """The account of a user ID's number."""
    query = """
        SELECT user_nid, s AS user_id, password_hash, is_admin, is_guest, is_deactivated
        FROM users JOIN atoms ON nid = user_nid WHERE user_nid = $1
    """
    row = await tx.fetchrow(query, user_nid)
    return None if row is None else User(**{**row, "user_id": row["user_id"].decode()})


async def hold_unchanged(tx: Transaction, user_nid: int, password_hash: str | None) -> bool:
    """Keep an account as it is until the transaction ends; False when deactivated or of another hash."""
    query = """
        SELECT true FROM users
        WHERE user_nid = $1 AND password_hash IS NOT DISTINCT FROM $2 AND NOT is_deactivated FOR SHARE
    """
    return await tx.fetchval(query, user_nid, password_hash) is not None


async def set_password_hash(tx: Transaction, user_nid: int, password_hash: str) -> bool:
    """Give an account another password; False when it is deactivated."""
    query = """
        UPDATE users SET password_hash = $2 WHERE user_nid = $1 AND NOT is_deactivated RETURNING true
    """
    return await tx.fetchval(query, user_nid, password_hash) is not None


async def replace_password_hash(tx: Transaction, user_nid: int, old: str, new: str) -> bool:
    """Store another hash of the same password; False when the stored one has changed meanwhile."""
    query = """
        UPDATE users SET password_hash = $3 WHERE user_nid = $1 AND password_hash = $2 RETURNING true
    """
    return await tx.fetchval(query, user_nid, old, new) is not None


async def deactivate(tx: Transaction, user_nid: int, *, erase: bool) -> None:
    """Take an account's password and rights; an erasure once asked for stays."""
    query = """
        UPDATE users
        SET is_deactivated = true, is_admin = false, password_hash = NULL, is_erased = is_erased OR $2
        WHERE user_nid = $1
    """
    await tx.execute(query, user_nid, erase)


async def is_empty(tx: Transaction) -> bool:
    """Whether there is no account at all."""
    return bool(await tx.fetchval("SELECT NOT EXISTS (SELECT FROM users)"))
