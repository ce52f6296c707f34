"""Client-Server API, sections "Joining rooms" and "Leaving rooms"."""

from __future__ import annotations

from collections.abc import Iterable

from client_api.endpoints import client_endpoints
from client_api.invite_limits import count_invites
from homeserver.errors import BadJson
from homeserver.http.models import (
    Body,
    OptionalBody,
    OptionalJsonBody,
    Path,
    Query,
    Reply,
    RoomIdField,
    RoomIdOrAliasField,
    UserIdField,
)
from homeserver.http.request import Request
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.identifiers import RoomAlias, RoomId, ServerName, parse_server_name
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import Services
from homeserver.services.access_tokens import Requester

endpoints = client_endpoints()


class RoomPath(Path):
    """A room."""

    room_id: RoomIdField


class RoomOrAliasPath(Path):
    """A room, by its ID or an alias."""

    room_id_or_alias: RoomIdOrAliasField


class Via(Query):
    """Servers that may help to enter the room; what is no server name is left out."""

    via: list[str] = []
    server_name: list[str] = []

    @property
    def servers(self) -> list[ServerName]:
        """The servers under both names of the parameter, that of today first."""
        return list(_server_names([*self.via, *self.server_name]))


def _server_names(texts: Iterable[str]) -> Iterable[ServerName]:
    for text in texts:
        try:
            yield parse_server_name(text)
        except InvalidIdentifier:
            continue


class JoinedRoom(Reply):
    """The room that the user is in now."""

    room_id: RoomId


class Reason(OptionalBody):
    """Why the requester changes a membership of its own."""

    reason: str | None = None


class Target(Body):
    """Whom a change of membership is about, and why."""

    user_id: UserIdField
    reason: str | None = None


def _extra(reason: str | None) -> JsonObject:
    return {} if reason is None else {"reason": reason}


def _join_content(body: JsonObject) -> JsonObject:
    """What a join request adds to the member event: all that it says, but for what is not content."""
    reason = body.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise BadJson("reason must be a string")
    return {key: value for key, value in body.items() if key != "third_party_signed"}


@endpoints.post("/_matrix/client/v3/rooms/{roomId}/join", rate_limit="join")
async def join_room_by_id(
    services: Services, requester: Requester, path: RoomPath, query: Via, body: OptionalJsonBody
) -> JoinedRoom:
    """Join a room by its ID."""
    await services.room_membership.join(requester, path.room_id, _join_content(body), query.servers)
    return JoinedRoom(room_id=path.room_id)


@endpoints.post("/_matrix/client/v3/join/{roomIdOrAlias}", rate_limit="join")
async def join_room(
    services: Services, requester: Requester, path: RoomOrAliasPath, query: Via, body: OptionalJsonBody
) -> JoinedRoom:
    """Join a room by its ID or an alias."""
    servers = query.servers
    if path.room_id_or_alias.startswith("#"):
        target = await services.lookups.alias(RoomAlias(path.room_id_or_alias))
        room_id, servers = target.room_id, [*servers, *target.servers]
    else:
        room_id = RoomId(path.room_id_or_alias)
    await services.room_membership.join(requester, room_id, _join_content(body), servers)
    return JoinedRoom(room_id=room_id)


@endpoints.post("/_matrix/client/v3/rooms/{roomId}/leave", rate_limit="message")
async def leave_room(services: Services, requester: Requester, path: RoomPath, body: Reason) -> Reply:
    """Leave a room, or reject an invite."""
    await services.room_membership.leave(requester, path.room_id, _extra(body.reason))
    return Reply()


@endpoints.post("/_matrix/client/v3/rooms/{roomId}/forget", rate_limit="message")
async def forget_room(
    services: Services, requester: Requester, path: RoomPath, body: OptionalJsonBody
) -> Reply:
    """Forget a room that was left."""
    await services.room_membership.forget(requester, path.room_id)
    return Reply()


@endpoints.post("/_matrix/client/v3/rooms/{roomId}/invite")
async def invite_user(
    services: Services, requester: Requester, path: RoomPath, body: Target, request: Request
) -> Reply:
    """Invite a user by ID."""
    count_invites(request, requester.user_id, [body.user_id])
    await services.room_membership.invite(requester, path.room_id, body.user_id, _extra(body.reason))
    return Reply()


@endpoints.post("/_matrix/client/v3/rooms/{roomId}/kick", rate_limit="message")
async def kick(services: Services, requester: Requester, path: RoomPath, body: Target) -> Reply:
    """Remove a user from a room."""
    await services.room_membership.kick(requester, path.room_id, body.user_id, _extra(body.reason))
    return Reply()


@endpoints.post("/_matrix/client/v3/rooms/{roomId}/ban", rate_limit="message")
async def ban(services: Services, requester: Requester, path: RoomPath, body: Target) -> Reply:
    """Ban a user from a room."""
    await services.room_membership.ban(requester, path.room_id, body.user_id, _extra(body.reason))
    return Reply()


@endpoints.post("/_matrix/client/v3/rooms/{roomId}/unban", rate_limit="message")
async def unban(services: Services, requester: Requester, path: RoomPath, body: Target) -> Reply:
    """Lift a ban."""
    await services.room_membership.unban(requester, path.room_id, body.user_id, _extra(body.reason))
    return Reply()
