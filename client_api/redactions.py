"""Client-Server API, section "Redactions"."""

from __future__ import annotations

from client_api.endpoints import client_endpoints
from homeserver.errors import BadJson, InvalidParam
from homeserver.http.models import (
    EventIdField,
    OptionalJsonBody,
    Path,
    Reply,
    RoomIdField,
    TransactionIdField,
)
from homeserver.protocol.identifiers import EventId
from homeserver.services import Services
from homeserver.services.access_tokens import Requester

endpoints = client_endpoints()


class RedactPath(Path):
    """An event to be redacted, under the client's own ID of the request."""

    room_id: RoomIdField
    event_id: EventIdField
    txn_id: TransactionIdField


class Redaction(Reply):
    """The redaction that was made."""

    event_id: EventId


@endpoints.put("/_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}", rate_limit="message")
async def redact_event(
    services: Services, requester: Requester, path: RedactPath, body: OptionalJsonBody
) -> Redaction:
    """Strip the content of an event."""
    reason = body.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise BadJson("reason must be a string")
    if body.get("redacts", path.event_id) != path.event_id:
        raise InvalidParam("redacts names another event than the path")
    event_id = await services.room_events.redact(
        requester, path.room_id, path.event_id, body, f"redact/{path.event_id}", path.txn_id
    )
    return Redaction(event_id=event_id)
