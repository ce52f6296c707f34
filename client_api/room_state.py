"""Client-Server API, section "Getting events for a room": its state."""

from __future__ import annotations

from typing import Literal

from client_api.endpoints import client_endpoints
from homeserver.http.models import Path, Query, RawReply, RoomIdField
from homeserver.protocol.events import client_event
from homeserver.services import Services
from homeserver.services.access_tokens import Requester

endpoints = client_endpoints()


class RoomPath(Path):
    """A room."""

    room_id: RoomIdField


class StatePath(RoomPath):
    """A piece of a room's state."""

    event_type: str
    state_key: str = ""


class StateQuery(Query):
    """How a state event is wanted."""

    format: Literal["content", "event"] = "content"


@endpoints.get("/_matrix/client/v3/rooms/{roomId}/state", cancellable=True)
async def get_room_state(services: Services, requester: Requester, path: RoomPath) -> RawReply:
    """Get the state of a room."""
    return RawReply.json(await services.room_state.state(requester, path.room_id))


@endpoints.get(
    "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}",
    aliases=(
        "/_matrix/client/v3/rooms/{roomId}/state/{eventType}",
        "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/",
    ),
    cancellable=True,
)
async def get_room_state_with_key(
    services: Services, requester: Requester, path: StatePath, query: StateQuery
) -> RawReply:
    """Get a piece of a room's state."""
    pdu = await services.room_state.entry(requester, path.room_id, path.event_type, path.state_key)
    return RawReply.json(pdu.content if query.format == "content" else client_event(pdu, with_room_id=True))
