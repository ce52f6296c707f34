"""Server-Server API, section "Retrieving server keys": our keys, and those of others as a notary."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from federation.inbound.endpoints import federation_endpoints
from homeserver.errors import InvalidParam
from homeserver.http.models import Body, NotNegative, Path, Query, RawReply, ServerNameField
from homeserver.protocol.canonical_json import MAX_INTEGER, canonical_json
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.identifiers import ServerName, parse_server_name
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import Services

endpoints = federation_endpoints()

MAX_QUERIED_SERVERS: Final = 200
MAX_QUERIED_KEYS: Final = 2000


class OwnKeyPath(Path):
    """The path of our keys; which of them is asked for changes nothing."""

    key_id: str = ""


class QueryPath(Path):
    """The path of a query for the keys of one server."""

    server_name: ServerNameField
    key_id: str = ""


class QueryParameters(Query):
    """Until when the keys should be valid, in ms; None for now."""

    minimum_valid_until_ts: NotNegative | None = None


class KeyCriteria(Body):
    """Until when a key should be valid, in ms; None for now."""

    minimum_valid_until_ts: Annotated[int | None, Field(ge=0, le=MAX_INTEGER)] = None


class KeyQuery(Body):
    """The keys of several servers: server name -> key ID -> criteria. No server may be an empty list too."""

    server_keys: dict[str, dict[str, KeyCriteria]] | list[Any]


@endpoints.get("/_matrix/key/v2/server", public=True, aliases=("/_matrix/key/v2/server/{keyId}",))
async def get_server_key(services: Services, path: OwnKeyPath) -> RawReply:
    """Publish our keys, as canonical JSON: some readers check the signature over just those bytes."""
    return RawReply(canonical_json(services.server_keys.own_response()))


@endpoints.get(
    "/_matrix/key/v2/query/{serverName}",
    public=True,
    aliases=("/_matrix/key/v2/query/{serverName}/{keyId}",),
)
async def perspectives_key_query(services: Services, path: QueryPath, query: QueryParameters) -> RawReply:
    """Say, as a notary, which keys one server has."""
    valid_until_ts = query.minimum_valid_until_ts
    wanted = {} if valid_until_ts is None else {path.key_id: min(valid_until_ts, MAX_INTEGER)}
    return _reply(await services.server_keys.attested({path.server_name: wanted}))


@endpoints.post("/_matrix/key/v2/query", public=True)
async def bulk_perspectives_key_query(services: Services, body: KeyQuery) -> RawReply:
    """Say, as a notary, which keys several servers have."""
    queried = body.server_keys if isinstance(body.server_keys, dict) else {}
    if len(queried) > MAX_QUERIED_SERVERS or sum(map(len, queried.values())) > MAX_QUERIED_KEYS:
        raise InvalidParam(
            f"server_keys: at most {MAX_QUERIED_SERVERS} servers and {MAX_QUERIED_KEYS} keys at once"
        )
    wanted: dict[ServerName, dict[str, int]] = {}
    for text, keys in queried.items():
        try:
            server_name = parse_server_name(text)
        except InvalidIdentifier:
            continue  # a server that there cannot be has no keys, like one that does not answer
        wanted[server_name] = {
            key_id: criteria.minimum_valid_until_ts
            for key_id, criteria in keys.items()
            if criteria.minimum_valid_until_ts is not None
        }
    return _reply(await services.server_keys.attested(wanted))


def _reply(found: list[JsonObject]) -> RawReply:
    return RawReply(canonical_json({"server_keys": found}))
