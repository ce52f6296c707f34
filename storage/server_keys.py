"""Tables server_keys and server_key_responses: the keys of other servers, and the lists they came in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.signing import VerifyKey
from storage.database import Transaction

MAX_KEYS_OF_A_SERVER: Final = 500
"""Further keys of one server are not stored: no server has had so many."""


@dataclass(frozen=True)
class StoredResponse:
    """The newest list of keys of a server: canonical JSON with that server's signatures."""

    response: bytes
    fetched_ts: int
    valid_until_ts: int


async def load(tx: Transaction, server_name: ServerName) -> dict[str, VerifyKey]:
    """All keys that are known of a server, by key ID."""
    query = "SELECT key_id, public_key, valid_until_ts FROM server_keys WHERE server_name = $1"
    rows = await tx.fetch(query, server_name)
    return {row["key_id"]: VerifyKey(row["public_key"], row["valid_until_ts"]) for row in rows}


async def replace(tx: Transaction, server_name: ServerName, keys: Mapping[str, VerifyKey]) -> None:
    """Store keys as they are now; those of the server that are not named stay."""
    query = """
        INSERT INTO server_keys (server_name, key_id, public_key, valid_until_ts)
        SELECT $1, key_id, public_key, valid_until_ts
        FROM unnest($2::text[], $3::bytea[], $4::bigint[]) AS new (key_id, public_key, valid_until_ts)
        WHERE (SELECT count(*) FROM server_keys WHERE server_name = $1) < $5
           OR EXISTS (SELECT FROM server_keys AS old WHERE old.server_name = $1 AND old.key_id = new.key_id)
        ON CONFLICT (server_name, key_id) DO UPDATE
        SET public_key = excluded.public_key, valid_until_ts = excluded.valid_until_ts
    """
    await tx.execute(query, server_name, *_columns(keys), MAX_KEYS_OF_A_SERVER)


async def extend(tx: Transaction, server_name: ServerName, keys: Mapping[str, VerifyKey]) -> None:
    """Store keys that are not known yet, and a later validity of known ones; nothing gets shorter."""
    query = """
        INSERT INTO server_keys (server_name, key_id, public_key, valid_until_ts)
        SELECT $1, key_id, public_key, valid_until_ts
        FROM unnest($2::text[], $3::bytea[], $4::bigint[]) AS new (key_id, public_key, valid_until_ts)
        WHERE (SELECT count(*) FROM server_keys WHERE server_name = $1) < $5
           OR EXISTS (SELECT FROM server_keys AS old WHERE old.server_name = $1 AND old.key_id = new.key_id)
        ON CONFLICT (server_name, key_id) DO UPDATE SET valid_until_ts = excluded.valid_until_ts
        WHERE server_keys.public_key = excluded.public_key
          AND server_keys.valid_until_ts < excluded.valid_until_ts
    """
    await tx.execute(query, server_name, *_columns(keys), MAX_KEYS_OF_A_SERVER)


async def load_responses(
    tx: Transaction, server_names: Collection[ServerName]
) -> dict[ServerName, StoredResponse]:
    """The newest lists of keys of some servers; those of which there is none are left out."""
    query = """
        SELECT server_name, response, fetched_ts, valid_until_ts
        FROM server_key_responses WHERE server_name = ANY($1::text[])
    """
    rows = await tx.fetch(query, list(server_names))
    return {
        ServerName(row["server_name"]): StoredResponse(
            row["response"], row["fetched_ts"], row["valid_until_ts"]
        )
        for row in rows
    }


async def save_response(
    tx: Transaction, server_name: ServerName, stored: StoredResponse, *, overwrite: bool
) -> None:
    """Store a server's newest list of keys, in place of the one before or only where there is none."""
    query = """
        INSERT INTO server_key_responses (server_name, response, fetched_ts, valid_until_ts)
        VALUES ($1, $2, $3, $4)
        ON CONFLICT (server_name) DO UPDATE
        SET response = excluded.response, fetched_ts = excluded.fetched_ts,
            valid_until_ts = excluded.valid_until_ts
        WHERE $5
    """
    values = (stored.response, stored.fetched_ts, stored.valid_until_ts)
    await tx.execute(query, server_name, *values, overwrite)


def _columns(keys: Mapping[str, VerifyKey]) -> tuple[list[str], list[bytes], list[int]]:
    return (
        list(keys),
        [key.public_key for key in keys.values()],
        [key.valid_until_ts for key in keys.values()],
    )
