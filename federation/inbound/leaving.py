"""Server-Server API, section "Leaving Rooms (Rejecting Invites)"."""

from __future__ import annotations

from federation.inbound.authentication import Origin, SignedContent
from federation.inbound.endpoints import federation_endpoints
from federation.inbound.paths import RoomEventPath, RoomUserPath
from homeserver.http.models import RawReply, Reply
from homeserver.services import Services

endpoints = federation_endpoints()


@endpoints.get("/_matrix/federation/v1/make_leave/{roomId}/{userId}")
async def make_leave(services: Services, origin: Origin, path: RoomUserPath) -> RawReply:
    """Say how the leave of a user has to look."""
    return RawReply.json(
        await services.resident_rooms.make_leave(origin.server_name, path.room_id, path.user_id)
    )


@endpoints.put("/_matrix/federation/v2/send_leave/{roomId}/{eventId}")
async def send_leave_v2(
    services: Services, origin: Origin, path: RoomEventPath, body: SignedContent
) -> Reply:
    """Take a user out of a room."""
    await services.resident_rooms.send_leave(origin.server_name, path.room_id, path.event_id, body)
    return Reply()


@endpoints.put("/_matrix/federation/v1/send_leave/{roomId}/{eventId}")
async def send_leave_v1(
    services: Services, origin: Origin, path: RoomEventPath, body: SignedContent
) -> RawReply:
    """The same in the form that older servers know."""
    await services.resident_rooms.send_leave(origin.server_name, path.room_id, path.event_id, body)
    return RawReply(b"[200,{}]")
