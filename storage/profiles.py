"""Table profiles: the profile fields of local users."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from storage.database import Transaction


async def read(tx: Transaction, user_nid: int) -> dict[str, Any] | None:
    """All fields that are set; None where there is no account, or none any more."""
    query = """
        SELECT field, value FROM users LEFT JOIN profiles USING (user_nid)
        WHERE user_nid = $1 AND NOT is_deactivated
    """
    rows = await tx.fetch(query, user_nid)
    if not rows:
        return None
    return {row["field"]: orjson.loads(row["value"]) for row in rows if row["field"] is not None}


async def lock(tx: Transaction, user_nid: int) -> bool:
    """Let nobody else change a profile until the transaction ends; False where there is no account."""
    query = "SELECT true FROM users WHERE user_nid = $1 AND NOT is_deactivated FOR NO KEY UPDATE"
    return await tx.fetchval(query, user_nid) is not None


async def write(tx: Transaction, user_nid: int, field: str, value: Any) -> None:
    """Set a field to a JSON value."""
    query = """
        INSERT INTO profiles (user_nid, field, value) VALUES ($1, $2, $3)
        ON CONFLICT (user_nid, field) DO UPDATE SET value = excluded.value
    """
    await tx.execute(query, user_nid, field, orjson.dumps(value))


async def delete(tx: Transaction, user_nid: int, field: str) -> None:
    """Unset a field, whether it is set or not."""
    await tx.execute("DELETE FROM profiles WHERE user_nid = $1 AND field = $2", user_nid, field)


async def delete_all(tx: Transaction, user_nid: int) -> None:
    """Unset every field."""
    await tx.execute("DELETE FROM profiles WHERE user_nid = $1", user_nid)


async def read_fields(
    tx: Transaction, user_nids: Iterable[int], fields: Iterable[str]
) -> dict[int, dict[str, Any]]:
    """Some fields of several users, those without any left out."""
    rows = await tx.fetch(
        """
        SELECT user_nid, field, value FROM profiles
        WHERE user_nid = ANY($1::bigint[]) AND field = ANY($2::text[])
        """,
        list(user_nids),
        list(fields),
    )
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["user_nid"], {})[row["field"]] = orjson.loads(row["value"])
    return found
