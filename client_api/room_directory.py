"""Client-Server API, sections "Room aliases" and "Published room directory"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from client_api.endpoints import client_endpoints
from client_api.lookup_limits import count_lookup
from homeserver.errors import MissingToken
from homeserver.http.models import (
    Body,
    NotNegative,
    OptionalBody,
    Path,
    Query,
    RawReply,
    Reply,
    RoomAliasField,
    RoomIdField,
    ServerNameField,
)
from homeserver.http.request import Request
from homeserver.protocol.identifiers import RoomAlias, RoomId, ServerName
from homeserver.services import Services
from homeserver.services.access_tokens import Requester
from homeserver.services.public_rooms import DirectoryQuery

endpoints = client_endpoints()

Visibility = Literal["public", "private"]


class AliasPath(Path):
    """A room alias."""

    room_alias: RoomAliasField


class RoomPath(Path):
    """A room."""

    room_id: RoomIdField


class NewAlias(Body):
    """Which room an alias is to point to."""

    room_id: RoomIdField


class AliasedRoom(Reply):
    """What an alias stands for."""

    room_id: RoomId
    servers: Sequence[ServerName]


class LocalAliases(Reply):
    """The aliases of this server that point to a room."""

    aliases: list[RoomAlias]


class NewVisibility(OptionalBody):
    """Whether the directory is to list a room."""

    visibility: Visibility = "public"


class RoomVisibility(Reply):
    """Whether the directory lists a room."""

    visibility: Visibility


class DirectoryServer(Query):
    """Whose directory is asked for."""

    server: ServerNameField | None = None


class DirectoryPart(DirectoryServer):
    """Which part of the directory is asked for."""

    limit: NotNegative | None = None
    since: str | None = None


class DirectoryFilter(Body):
    """Which rooms are looked for; null among the types stands for rooms without one."""

    generic_search_term: str | None = None
    room_types: list[str | None] | None = None


class DirectorySearch(OptionalBody):
    """Which part of which rooms of the directory is asked for."""

    limit: NotNegative | None = None
    since: str | None = None
    filter: DirectoryFilter | None = None
    include_all_networks: bool | None = None
    third_party_instance_id: str | None = None


@endpoints.get("/_matrix/client/v3/directory/room/{roomAlias}", public=True)
async def get_room_id_by_alias(services: Services, path: AliasPath, request: Request) -> AliasedRoom:
    """Tell which room an alias points to."""
    count_lookup(services, request, path.room_alias)
    target = await services.lookups.alias(path.room_alias)
    return AliasedRoom(room_id=target.room_id, servers=target.servers)


@endpoints.put("/_matrix/client/v3/directory/room/{roomAlias}", rate_limit="directory")
async def set_room_alias(services: Services, requester: Requester, path: AliasPath, body: NewAlias) -> Reply:
    """Make an alias point to a room."""
    await services.room_directory.add_alias(requester, path.room_alias, body.room_id)
    return Reply()


@endpoints.delete("/_matrix/client/v3/directory/room/{roomAlias}", rate_limit="directory")
async def delete_room_alias(services: Services, requester: Requester, path: AliasPath) -> Reply:
    """Delete an alias."""
    await services.room_directory.delete_alias(requester, path.room_alias)
    return Reply()


@endpoints.get("/_matrix/client/v3/rooms/{roomId}/aliases", rate_limit="directory")
async def get_local_aliases(services: Services, requester: Requester, path: RoomPath) -> LocalAliases:
    """List the aliases that point to a room."""
    return LocalAliases(aliases=await services.room_directory.aliases_of(requester, path.room_id))


@endpoints.get("/_matrix/client/v3/directory/list/room/{roomId}", public=True)
async def get_room_visibility_on_directory(services: Services, path: RoomPath) -> RoomVisibility:
    """Tell whether the directory lists a room."""
    published = await services.room_directory.is_published(path.room_id)
    return RoomVisibility(visibility="public" if published else "private")


@endpoints.put("/_matrix/client/v3/directory/list/room/{roomId}", rate_limit="directory")
async def set_room_visibility_on_directory(
    services: Services, requester: Requester, path: RoomPath, body: NewVisibility
) -> Reply:
    """List a room in the directory, or no more."""
    await services.room_directory.set_published(requester, path.room_id, body.visibility == "public")
    return Reply()


@endpoints.get("/_matrix/client/v3/publicRooms", public=True, rate_limit="directory")
async def get_public_rooms(services: Services, requester: Requester | None, query: DirectoryPart) -> RawReply:
    """List the published rooms; the configuration says whether that needs an account.

    Without one no other server is asked.
    """
    ours = query.server in (None, services.config.server_name)
    if requester is None and not (ours and services.config.rooms.directory_without_auth):
        raise MissingToken("this server shows directories to its users only")
    wanted = DirectoryQuery(limit=query.limit or 0, since=query.since)
    return RawReply.json((await services.lookups.directory(query.server, wanted)).to_json())


@endpoints.post("/_matrix/client/v3/publicRooms", rate_limit="directory")
async def query_public_rooms(
    services: Services, requester: Requester, query: DirectoryServer, body: DirectorySearch
) -> RawReply:
    """Search the published rooms."""
    wanted = DirectoryQuery(
        limit=body.limit or 0,
        since=body.since,
        search_term=None if body.filter is None else body.filter.generic_search_term,
        room_types=None if body.filter is None else body.filter.room_types,
        third_party_network=body.third_party_instance_id,
        all_networks=bool(body.include_all_networks),
    )
    return RawReply.json((await services.lookups.directory(query.server, wanted)).to_json())
