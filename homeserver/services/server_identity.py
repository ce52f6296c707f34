"""What makes this server itself: the name it has in its database, and the key of its access tokens."""

from __future__ import annotations

import secrets

from homeserver.errors import LairError
from homeserver.protocol.identifiers import ServerName
from storage import server
from storage.database import Database
from storage.server import ServerRow


class OtherServerName(LairError):
    """The database belongs to a server of another name."""


async def establish_identity(database: Database, server_name: ServerName) -> ServerRow:
    """The identity that the database holds; made on the first start, the same for all processes.

    Raises OtherServerName: user IDs and rooms carry the name, so it never changes.
    """
    fresh = ServerRow(server_name, secrets.token_urlsafe(9), secrets.token_bytes(32))
    async with database.connection() as tx:
        await server.insert(tx, fresh)
        row = await server.load(tx)
    assert row is not None
    if row.server_name != server_name:
        raise OtherServerName(
            f"server_name: the database belongs to {row.server_name}, not to {server_name}; "
            "set server_name back, or use another database"
        )
    return row
