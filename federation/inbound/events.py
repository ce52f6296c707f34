"""Server-Server API, section "Retrieving events", and the auth chains of events."""

from __future__ import annotations

from federation.inbound.authentication import Origin
from federation.inbound.endpoints import federation_endpoints
from federation.inbound.event_lists import in_transaction, listed
from federation.inbound.paths import EventPath, RoomEventPath, RoomPath
from homeserver.http.models import EventIdField, Query, RawReply
from homeserver.services import Services

endpoints = federation_endpoints()


class StateQuestion(Query):
    """The event before which the state is asked for."""

    event_id: EventIdField


@endpoints.get(
    "/_matrix/federation/v1/event/{eventId}",
    aliases=("/_matrix/federation/v1/event/{eventId}/",),
    cancellable=True,
)
async def get_event(services: Services, origin: Origin, path: EventPath) -> RawReply:
    """Give a single event."""
    event = await services.history_for_servers.event(origin.server_name, path.event_id)
    return in_transaction(services, [event])


@endpoints.get(
    "/_matrix/federation/v1/state/{roomId}",
    aliases=("/_matrix/federation/v1/state/{roomId}/",),
    cancellable=True,
)
async def get_room_state(
    services: Services, origin: Origin, path: RoomPath, query: StateQuestion
) -> RawReply:
    """Give the state of a room before an event."""
    return RawReply(
        await services.history_for_servers.state(origin.server_name, path.room_id, query.event_id)
    )


@endpoints.get(
    "/_matrix/federation/v1/state_ids/{roomId}",
    aliases=("/_matrix/federation/v1/state_ids/{roomId}/",),
    cancellable=True,
)
async def get_room_state_ids(
    services: Services, origin: Origin, path: RoomPath, query: StateQuestion
) -> RawReply:
    """Give the state of a room before an event, in event IDs."""
    return RawReply(
        await services.history_for_servers.state_ids(origin.server_name, path.room_id, query.event_id)
    )


@endpoints.get("/_matrix/federation/v1/event_auth/{roomId}/{eventId}", cancellable=True)
async def get_event_auth(services: Services, origin: Origin, path: RoomEventPath) -> RawReply:
    """Give the auth chain of an event."""
    chain = await services.history_for_servers.event_auth(origin.server_name, path.room_id, path.event_id)
    return listed("auth_chain", chain)
