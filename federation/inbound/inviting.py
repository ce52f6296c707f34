"""Server-Server API, section "Inviting to a room"."""

from __future__ import annotations

import time
from typing import Any, Final

from federation.inbound.authentication import Origin, SignedContent
from federation.inbound.endpoints import federation_endpoints
from federation.inbound.paths import RoomPath
from homeserver.errors import BadJson
from homeserver.http.models import RawReply
from homeserver.http.request import Request
from homeserver.protocol.canonical_json import write_json
from homeserver.protocol.identifiers import EventId, server_in
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import Services
from homeserver.services.out_of_band import InviteRequest

endpoints = federation_endpoints()

MAX_INVITE_BYTES: Final = 2 * 1024 * 1024
"""An event and the state that comes with it, which somebody may write with escapes."""


class InvitePath(RoomPath):
    """An invite, and the room that it is for, which may be of a version whose event IDs have another form."""

    event_id: str


@endpoints.put(
    "/_matrix/federation/v2/invite/{roomId}/{eventId}",
    max_body_bytes=MAX_INVITE_BYTES,
    rate_limit="invite",
)
async def send_invite_v2(
    services: Services, origin: Origin, path: InvitePath, content: SignedContent, request: Request
) -> RawReply:
    """Take an invite of a user of this server."""
    event, room_version = content.get("event"), content.get("room_version")
    if not isinstance(event, dict):
        raise BadJson("event: must be an object")
    if not isinstance(room_version, str):
        raise BadJson("room_version: must be a string")
    _count_invite(services, request, event)
    invite = InviteRequest(
        path.room_id, EventId(path.event_id), event, content.get("invite_room_state"), room_version
    )
    signed = await services.out_of_band.receive_invite(origin.server_name, invite)
    return _reply({"event": signed})


@endpoints.put(
    "/_matrix/federation/v1/invite/{roomId}/{eventId}",
    max_body_bytes=MAX_INVITE_BYTES,
    rate_limit="invite",
)
async def send_invite_v1(
    services: Services, origin: Origin, path: InvitePath, content: SignedContent, request: Request
) -> RawReply:
    """Take an invite of a user of this server, in the form that tells no room version."""
    _count_invite(services, request, content)
    unsigned = content.get("unsigned")
    stripped = unsigned.get("invite_room_state") if isinstance(unsigned, dict) else None
    invite = InviteRequest(path.room_id, EventId(path.event_id), content, stripped)
    signed = await services.out_of_band.receive_invite(origin.server_name, invite)
    return _reply([200, {"event": signed}])


def _count_invite(services: Services, request: Request, event: JsonObject) -> None:
    """Count an invite for the user who gets it, whoever sends it. Raises LimitExceeded."""
    user_id = event.get("state_key")
    if isinstance(user_id, str) and server_in(user_id) == services.config.server_name:
        request.listener.rate_limiter.check("invited", user_id, time.monotonic())


def _reply(value: Any) -> RawReply:
    return RawReply(write_json(value))
