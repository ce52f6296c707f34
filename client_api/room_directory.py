"""Client-Server API, sections "Room aliases" and "Published room directory"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from client_api.endpoints import client_endpoints
from homeserver.errors import InvalidParam, MissingToken
from homeserver.http.models import (
    Body,
    NotNegative,
    OptionalBody,
    Path,
    Query,
    Reply,
    RoomAliasField,
    RoomIdField,
    ServerNameField,
)
from homeserver.protocol.identifiers import RoomAlias, RoomId, ServerName
from homeserver.services import Services
from homeserver.services.access_tokens import Requester
from homeserver.services.public_rooms import DirectoryPage, DirectoryQuery

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


class ListedRoom(Reply):
    """An entry of the directory."""

    room_id: RoomId
    num_joined_members: int
    world_readable: bool
    guest_can_join: bool
    name: str | None
    topic: str | None
    canonical_alias: str | None
    avatar_url: str | None
    join_rule: str | None
    room_type: str | None


class ListedRooms(Reply):
    """A part of the directory."""

    chunk: list[ListedRoom]
    next_batch: str | None
    prev_batch: str | None
    total_room_count_estimate: int

    @classmethod
    def of(cls, page: DirectoryPage) -> ListedRooms:
        """The answer for a page."""
        return cls(
            chunk=[ListedRoom(**vars(room)) for room in page.rooms],
            next_batch=page.next_batch,
            prev_batch=page.prev_batch,
            total_room_count_estimate=page.total_room_count_estimate,
        )


@endpoints.get("/_matrix/client/v3/directory/room/{roomAlias}", public=True)
async def get_room_id_by_alias(services: Services, path: AliasPath) -> AliasedRoom:
    """Tell which room an alias points to."""
    target = await services.room_directory.find(path.room_alias)
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
async def get_public_rooms(
    services: Services, requester: Requester | None, query: DirectoryPart
) -> ListedRooms:
    """List the published rooms; the configuration says whether that needs an account."""
    if requester is None and not services.config.rooms.directory_without_auth:
        raise MissingToken("this server shows its directory to its users only")
    wanted = DirectoryQuery(limit=query.limit or 0, since=query.since)
    return ListedRooms.of(await services.public_rooms.page(wanted, query.server))


@endpoints.post("/_matrix/client/v3/publicRooms", rate_limit="directory")
async def query_public_rooms(
    services: Services, requester: Requester, query: DirectoryServer, body: DirectorySearch
) -> ListedRooms:
    """Search the published rooms."""
    if body.include_all_networks and body.third_party_instance_id is not None:
        raise InvalidParam("third_party_instance_id is one network, include_all_networks is all of them")
    wanted = DirectoryQuery(
        limit=body.limit or 0,
        since=body.since,
        search_term=None if body.filter is None else body.filter.generic_search_term,
        room_types=None if body.filter is None else body.filter.room_types,
        third_party_network=body.third_party_instance_id,
    )
    return ListedRooms.of(await services.public_rooms.page(wanted, query.server))
