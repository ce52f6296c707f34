"""Server-Server requests that we make: one function for each endpoint.

All of them raise what SignedClient.send raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from federation.outbound.signed_client import InvalidResponse, SignedClient, uri_of
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.strict_json import JsonObject

KEYS_TIMEOUT_S: Final = 15.0
MAX_KEYS_BYTES: Final = 256 * 1024
MAX_QUERIED_KEYS_BYTES: Final = 4 * 1024 * 1024


async def get_server_key(client: SignedClient, destination: ServerName) -> JsonObject:
    """The list of a server's keys, as it came: nothing of it is checked.

    Source: Server-Server API, GET /_matrix/key/v2/server.
    """
    return await client.send_unsigned(
        "GET",
        destination,
        uri_of("/_matrix/key/v2/server"),
        timeout_s=KEYS_TIMEOUT_S,
        max_response_bytes=MAX_KEYS_BYTES,
    )


async def bulk_perspectives_key_query(
    client: SignedClient, notary: ServerName, wanted: Mapping[ServerName, Mapping[str, int]]
) -> list[Any]:
    """What a notary knows of the keys of some servers: lists of keys, of which nothing is checked.

    `wanted`: for each server the IDs of keys, with the time in ms until which each should be valid.
    Source: Server-Server API, POST /_matrix/key/v2/query.
    """
    query = {
        server_name: {
            key_id: {"minimum_valid_until_ts": valid_until_ts} for key_id, valid_until_ts in keys.items()
        }
        for server_name, keys in wanted.items()
    }
    answer = await client.send_unsigned(
        "POST",
        notary,
        uri_of("/_matrix/key/v2/query"),
        {"server_keys": query},
        timeout_s=KEYS_TIMEOUT_S,
        max_response_bytes=MAX_QUERIED_KEYS_BYTES,
    )
    found = answer.get("server_keys")
    if not isinstance(found, list):
        raise InvalidResponse(notary, "server_keys is no list")
    return found


async def get_version(client: SignedClient, destination: ServerName) -> JsonObject:
    """Name and version of a server's implementation, as it says.

    Source: Server-Server API, GET /_matrix/federation/v1/version.
    """
    answer = await client.send_unsigned("GET", destination, uri_of("/_matrix/federation/v1/version"))
    server = answer.get("server")
    return server if isinstance(server, dict) else {}
