"""Client-Server API, section "Sending events to a room"."""

from __future__ import annotations

import time

from client_api.endpoints import client_endpoints
from client_api.invite_limits import count_invites
from homeserver.errors import InvalidParam
from homeserver.http.models import JsonBody, Path, Reply, RoomIdField, TransactionIdField
from homeserver.http.request import Request
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.events import EventDraft
from homeserver.protocol.identifiers import EventId, parse_user_id
from homeserver.services import Services
from homeserver.services.access_tokens import Requester

endpoints = client_endpoints()


class SendPath(Path):
    """A message to be sent, under the client's own ID of the request."""

    room_id: RoomIdField
    event_type: str
    txn_id: TransactionIdField


class StatePath(Path):
    """A piece of a room's state."""

    room_id: RoomIdField
    event_type: str
    state_key: str = ""


class SentEvent(Reply):
    """The event that was made."""

    event_id: EventId


@endpoints.put("/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", rate_limit="message")
async def send_message(services: Services, requester: Requester, path: SendPath, body: JsonBody) -> SentEvent:
    """Send a message event to a room."""
    draft = EventDraft(path.event_type, body)
    return SentEvent(event_id=await services.room_events.send(requester, path.room_id, draft, path.txn_id))


@endpoints.put(
    "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}",
    aliases=(
        "/_matrix/client/v3/rooms/{roomId}/state/{eventType}",
        "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/",
    ),
    rate_limit="message",
)
async def set_room_state_with_key(
    services: Services, requester: Requester, path: StatePath, body: JsonBody, request: Request
) -> SentEvent:
    """Set a piece of a room's state."""
    if path.event_type != "m.room.member":
        draft = EventDraft(path.event_type, body, path.state_key)
        return SentEvent(event_id=await services.room_events.set_state(requester, path.room_id, draft))
    try:
        user_id = parse_user_id(path.state_key)
    except InvalidIdentifier as error:
        raise InvalidParam(f"the state key of m.room.member: {error}") from None
    membership = body.get("membership")
    if membership == "invite":
        count_invites(request, requester.user_id, [user_id])
    elif membership == "join":
        request.listener.rate_limiter.check("join", requester.user_id, time.monotonic())
    event_id = await services.room_membership.set_by_state_event(requester, path.room_id, user_id, body)
    return SentEvent(event_id=event_id)
