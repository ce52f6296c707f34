"""The keys of this server: the one that signs now, and those that did before.

Source: Server-Server API, "Retrieving server keys".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from homeserver.errors import LairError
from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.signing import ServerKeys, SigningKey, VerifyKey
from homeserver.services.clock import Clock
from homeserver.services.signing_key_file import create_signing_key, read_signing_key
from storage import signing_keys
from storage.database import Database


class SigningKeyLost(LairError):
    """The key in use so far is not in its file."""


class SigningKeyIdReused(LairError):
    """The key in the file has the ID of another key that was used before."""


@dataclass(frozen=True)
class OwnKeys:
    """The keys of this server. `old`: by key ID, each valid until it was retired."""

    server_name: ServerName
    current: SigningKey
    old: Mapping[str, VerifyKey]

    @property
    def verify_keys(self) -> ServerKeys:
        """All keys, to check what this server itself has signed."""
        return {**self.old, self.current.key_id: VerifyKey(self.current.public_key, MAX_INTEGER)}


async def load_own_keys(database: Database, server_name: ServerName, path: Path, clock: Clock) -> OwnKeys:
    """Read the key file; on the first start on a database, make one where there is none.

    The database remembers which keys were used, so that one that was replaced in the file stays good for
    what it signed. Raises SigningKeyUnusable, SigningKeyLost, SigningKeyIdReused.
    """
    key = await asyncio.to_thread(read_signing_key, path)
    if key is None:
        async with database.connection() as tx:
            in_use = [row.key_id for row in await signing_keys.load(tx) if row.retired_ts is None]
        # Another process may have made the file meanwhile, and the row after it.
        key = await asyncio.to_thread(read_signing_key if in_use else create_signing_key, path)
        if key is None:
            raise SigningKeyLost(
                f"signing_key_path: {path} is not there, but this server has signed with {in_use[0]}; "
                "restore the file from a backup. Only if the key is lost for good, write a new one: "
                f"(umask 077; echo ed25519 a_new $(head -c 32 /dev/urandom | base64 | tr -d =) > {path})"
            )
    async with database.transaction() as tx:
        await signing_keys.lock(tx)
        rows = {row.key_id: row for row in await signing_keys.load(tx)}
        row = rows.pop(key.key_id, None)
        if row is not None and row.public_key != key.public_key:
            raise SigningKeyIdReused(
                f"signing_key_path: this server has signed with another key called {key.key_id}; "
                "restore that key, or give the new one another version"
            )
        now = clock()
        if row is None or row.retired_ts is not None:
            await signing_keys.put_in_use(tx, key.key_id, key.public_key)
        await signing_keys.retire_others(tx, key.key_id, now)
    old = {
        key_id: VerifyKey(row.public_key, now if row.retired_ts is None else row.retired_ts)
        for key_id, row in rows.items()
    }
    return OwnKeys(server_name, key, old)
