"""Table destinations: the servers that failed when they were last asked."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.protocol.identifiers import ServerName
from storage.database import Transaction


@dataclass(frozen=True, slots=True)
class FailingDestination:
    """How often a server failed in a row, and when it may be asked again (ms)."""

    failures: int
    retry_ts: int


async def load(tx: Transaction, limit: int) -> dict[ServerName, FailingDestination]:
    """The servers that failed, at most so many: those that may be asked again last."""
    query = "SELECT server_name, failures, retry_ts FROM destinations ORDER BY retry_ts DESC LIMIT $1"
    return {
        ServerName(row["server_name"]): FailingDestination(row["failures"], row["retry_ts"])
        for row in await tx.fetch(query, limit)
    }


async def save(tx: Transaction, server_name: ServerName, failing: FailingDestination) -> None:
    """Note that a server failed."""
    query = """
        INSERT INTO destinations (server_name, failures, retry_ts) VALUES ($1, $2, $3)
        ON CONFLICT (server_name) DO UPDATE SET failures = excluded.failures, retry_ts = excluded.retry_ts
    """
    await tx.execute(query, server_name, failing.failures, failing.retry_ts)


async def delete(tx: Transaction, server_name: ServerName) -> None:
    """Note that a server answers."""
    await tx.execute("DELETE FROM destinations WHERE server_name = $1", server_name)


async def delete_older(tx: Transaction, retry_ts: int) -> None:
    """Forget the servers that nobody wanted to ask again since a time in ms."""
    await tx.execute("DELETE FROM destinations WHERE retry_ts < $1", retry_ts)
