"""Server-Server API, section "Published Room Directory"."""

from __future__ import annotations

from federation.inbound.authentication import Origin
from federation.inbound.endpoints import federation_endpoints
from homeserver.errors import Forbidden
from homeserver.http.models import Body, NotNegative, Query, RawReply
from homeserver.services import Services
from homeserver.services.public_rooms import DirectoryQuery

endpoints = federation_endpoints()


class DirectoryPart(Query):
    """Which part of the directory is asked for."""

    limit: NotNegative = 0
    since: str | None = None
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


class DirectoryFilter(Body):
    """Which rooms are looked for; null among the types stands for rooms without one."""

    generic_search_term: str | None = None
    room_types: list[str | None] | None = None


class DirectorySearch(Body):
    """Which part of which rooms of the directory is asked for."""

    limit: NotNegative | None = None
    since: str | None = None
    filter: DirectoryFilter | None = None
    include_all_networks: bool | None = None
    third_party_instance_id: str | None = None


@endpoints.get("/_matrix/federation/v1/publicRooms", rate_limit="directory")
async def get_public_rooms(services: Services, origin: Origin, query: DirectoryPart) -> RawReply:
    """List the published rooms of this server."""
    return await _page(
        services,
        DirectoryQuery(
            limit=query.limit,
            since=query.since,
            third_party_network=query.third_party_instance_id,
            all_networks=query.include_all_networks,
            over_federation=True,
        ),
    )


@endpoints.post("/_matrix/federation/v1/publicRooms", rate_limit="directory")
async def query_public_rooms(services: Services, origin: Origin, body: DirectorySearch) -> RawReply:
    """Search the published rooms of this server."""
    return await _page(
        services,
        DirectoryQuery(
            limit=body.limit or 0,
            since=body.since,
            search_term=None if body.filter is None else body.filter.generic_search_term,
            room_types=None if body.filter is None else body.filter.room_types,
            third_party_network=body.third_party_instance_id,
            all_networks=bool(body.include_all_networks),
            over_federation=True,
        ),
    )


async def _page(services: Services, wanted: DirectoryQuery) -> RawReply:
    """A part of the directory. Raises Forbidden where the configuration keeps it from other servers."""
    if not services.config.rooms.directory_over_federation:
        raise Forbidden("this server does not show its directory to other servers")
    return RawReply.json((await services.public_rooms.page(wanted)).to_json())
