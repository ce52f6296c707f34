"""Server-Server API, section "Joining Rooms"."""

from __future__ import annotations

from federation.inbound.authentication import Origin, SignedContent
from federation.inbound.endpoints import federation_endpoints
from federation.inbound.paths import RoomEventPath, RoomUserPath
from homeserver.http.models import Query, RawReply
from homeserver.services import Services

endpoints = federation_endpoints()


class SpokenVersions(Query):
    """The room versions that the server speaks; one that names none means the oldest."""

    ver: list[str] = ["1"]


class WantedAnswer(Query):
    """Whether the members may be left out."""

    omit_members: bool = False


@endpoints.get("/_matrix/federation/v1/make_join/{roomId}/{userId}")
async def make_join(
    services: Services, origin: Origin, path: RoomUserPath, query: SpokenVersions
) -> RawReply:
    """Say how the join of a user has to look."""
    return RawReply.json(
        await services.resident_rooms.make_join(origin.server_name, path.room_id, path.user_id, query.ver)
    )


@endpoints.put("/_matrix/federation/v2/send_join/{roomId}/{eventId}")
async def send_join_v2(
    services: Services, origin: Origin, path: RoomEventPath, query: WantedAnswer, body: SignedContent
) -> RawReply:
    """Let a user in, and tell the state of the room."""
    return RawReply(
        await services.resident_rooms.send_join(
            origin.server_name, path.room_id, path.event_id, body, omit_members=query.omit_members
        )
    )


@endpoints.put("/_matrix/federation/v1/send_join/{roomId}/{eventId}")
async def send_join_v1(
    services: Services, origin: Origin, path: RoomEventPath, body: SignedContent
) -> RawReply:
    """The same in the form that older servers know."""
    answer = await services.resident_rooms.send_join(
        origin.server_name, path.room_id, path.event_id, body, omit_members=False
    )
    return RawReply(b"[200," + answer + b"]")
