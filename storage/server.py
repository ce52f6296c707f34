"""Table server: what this database belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.protocol.identifiers import ServerName
from storage.database import Transaction


@dataclass(frozen=True)
class ServerRow:
    """The one row of the table."""

    server_name: ServerName
    incarnation: str
    access_token_key: bytes


async def insert(tx: Transaction, row: ServerRow) -> None:
    """Store the row of a new database; nothing happens where there is one."""
    query = """
        INSERT INTO server (server_name, incarnation, access_token_key) VALUES ($1, $2, $3)
        ON CONFLICT DO NOTHING
    """
    await tx.execute(query, row.server_name, row.incarnation, row.access_token_key)


async def load(tx: Transaction) -> ServerRow | None:
    """The row; None before the first start."""
    row = await tx.fetchrow("SELECT server_name, incarnation, access_token_key FROM server")
    return None if row is None else ServerRow(**row)
