"""Table signing_keys: every key that this server has signed with."""

from __future__ import annotations

from dataclasses import dataclass

from storage.database import Transaction


@dataclass(frozen=True)
class OwnKeyRow:
    """One key; `retired_ts` is None for the one that signs now."""

    key_id: str
    public_key: bytes
    retired_ts: int | None


async def load(tx: Transaction) -> list[OwnKeyRow]:
    """All keys."""
    rows = await tx.fetch("SELECT key_id, public_key, retired_ts FROM signing_keys ORDER BY key_id")
    return [OwnKeyRow(**row) for row in rows]


async def lock(tx: Transaction) -> None:
    """Let nobody else change the table until the transaction ends."""
    await tx.execute("LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE")


async def retire_others(tx: Transaction, key_id: str, retired_ts: int) -> None:
    """Note that only this key signs from now on."""
    query = "UPDATE signing_keys SET retired_ts = $2 WHERE key_id <> $1 AND retired_ts IS NULL"
    await tx.execute(query, key_id, retired_ts)


async def put_in_use(tx: Transaction, key_id: str, public_key: bytes) -> None:
    """Note that a key signs from now on."""
    query = """
        INSERT INTO signing_keys (key_id, public_key) VALUES ($1, $2)
        ON CONFLICT (key_id) DO UPDATE SET retired_ts = NULL
    """
    await tx.execute(query, key_id, public_key)
