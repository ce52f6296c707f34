"""Client-Server API, section "Getting events for a room": its members, and the rooms that one is in."""

from __future__ import annotations

from typing import Literal, TypeAlias

from client_api.endpoints import client_endpoints
from homeserver.http.models import Path, Query, RawReply, Reply, RoomIdField
from homeserver.protocol.identifiers import RoomId
from homeserver.services import Services
from homeserver.services.access_tokens import Requester
from homeserver.services.room_state import MembersRequest

endpoints = client_endpoints()

AnyMembership: TypeAlias = Literal["join", "invite", "knock", "leave", "ban"]


class RoomPath(Path):
    """A room."""

    room_id: RoomIdField


class MembersQuery(Query):
    """Which members are wanted, and as of when."""

    at: str | None = None
    membership: AnyMembership | None = None
    not_membership: AnyMembership | None = None


class JoinedRooms(Reply):
    """The rooms that the user is in."""

    joined_rooms: list[RoomId]


@endpoints.get("/_matrix/client/v3/rooms/{roomId}/members", cancellable=True)
async def get_members_by_room(
    services: Services, requester: Requester, path: RoomPath, query: MembersQuery
) -> RawReply:
    """Get the member events of a room."""
    request = MembersRequest(query.at, query.membership, query.not_membership)
    return RawReply.json({"chunk": await services.room_state.members(requester, path.room_id, request)})


@endpoints.get("/_matrix/client/v3/rooms/{roomId}/joined_members", cancellable=True)
async def get_joined_members_by_room(services: Services, requester: Requester, path: RoomPath) -> RawReply:
    """Get the profiles of those who are in a room."""
    return RawReply.json({"joined": await services.room_state.joined_members(requester, path.room_id)})


@endpoints.get("/_matrix/client/v3/joined_rooms", cancellable=True)
async def get_joined_rooms(services: Services, requester: Requester) -> JoinedRooms:
    """Get the rooms that the user is in."""
    return JoinedRooms(joined_rooms=await services.room_state.joined_rooms(requester))
