"""Server-Server requests that we make: one function for each endpoint.

All of them raise what SignedClient.send raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from federation.outbound.signed_client import InvalidResponse, SignedClient, uri_of
from homeserver.protocol.identifiers import RoomAlias, ServerName, UserId
from homeserver.protocol.strict_json import JsonObject

KEYS_TIMEOUT_S: Final = 15.0
MAX_KEYS_BYTES: Final = 256 * 1024
MAX_QUERIED_KEYS_BYTES: Final = 4 * 1024 * 1024
QUERY_TIMEOUT_S: Final = 15.0
"""How long someone waits for what another server knows of an alias, a user or its rooms."""
MAX_PROFILE_BYTES: Final = 256 * 1024
"""A profile has 64 KiB; who writes it with escapes may need more."""
MAX_DIRECTORY_BYTES: Final = 8 * 1024 * 1024
"""Each of a hundred rooms may have a name and a topic as long as an event."""


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


async def query_room_directory(client: SignedClient, destination: ServerName, alias: RoomAlias) -> JsonObject:
    """What a server says that one of its aliases stands for: nothing of it is checked.

    Source: Server-Server API, GET /_matrix/federation/v1/query/directory.
    """
    uri = uri_of("/_matrix/federation/v1/query/directory", query={"room_alias": alias})
    return await client.send("GET", destination, uri, timeout_s=QUERY_TIMEOUT_S)


async def query_profile(
    client: SignedClient, destination: ServerName, user_id: UserId, field: str | None
) -> JsonObject:
    """What a server says of one of its users, or of one field of the profile: nothing of it is checked.

    Source: Server-Server API, GET /_matrix/federation/v1/query/profile.
    """
    query: dict[str, str | list[str]] = {"user_id": user_id}
    if field is not None:
        query["field"] = field
    return await client.send(
        "GET",
        destination,
        uri_of("/_matrix/federation/v1/query/profile", query=query),
        timeout_s=QUERY_TIMEOUT_S,
        max_response_bytes=MAX_PROFILE_BYTES,
    )


async def query_public_rooms(
    client: SignedClient, destination: ServerName, content: JsonObject
) -> JsonObject:
    """A part of a server's directory, as it came: nothing of it is checked.

    `content`: which part of which rooms. Asked by POST also where no filter needs it, because a long token
    makes no long URL then. Source: Server-Server API, POST /_matrix/federation/v1/publicRooms.
    """
    return await client.send(
        "POST",
        destination,
        uri_of("/_matrix/federation/v1/publicRooms"),
        content,
        timeout_s=QUERY_TIMEOUT_S,
        max_response_bytes=MAX_DIRECTORY_BYTES,
    )
