"""Server-Server API, section "Backfilling and retrieving missing events"."""

from __future__ import annotations

from federation.inbound.authentication import Origin
from federation.inbound.endpoints import federation_endpoints
from federation.inbound.event_lists import in_transaction, listed
from federation.inbound.paths import RoomPath
from homeserver.http.models import Body, NotNegative, Query, RawReply
from homeserver.services import Services

endpoints = federation_endpoints()


class BackfillQuestion(Query):
    """The events from which on to go back, and how many are wanted."""

    v: list[str]
    limit: NotNegative


class MissingEventsQuestion(Body):
    """The events between which some are missing."""

    earliest_events: list[str]
    latest_events: list[str]
    limit: NotNegative = 10
    min_depth: int = 0


@endpoints.get(
    "/_matrix/federation/v1/backfill/{roomId}",
    aliases=("/_matrix/federation/v1/backfill/{roomId}/",),
    cancellable=True,
)
async def backfill_room(
    services: Services, origin: Origin, path: RoomPath, query: BackfillQuestion
) -> RawReply:
    """Give some events and those before them."""
    events = await services.history_for_servers.backfill(
        origin.server_name, path.room_id, query.v, query.limit
    )
    return in_transaction(services, events)


@endpoints.post("/_matrix/federation/v1/get_missing_events/{roomId}", cancellable=True)
async def get_missing_previous_events(
    services: Services, origin: Origin, path: RoomPath, body: MissingEventsQuestion
) -> RawReply:
    """Give the events between some and others."""
    events = await services.history_for_servers.missing_events(
        origin.server_name,
        path.room_id,
        earliest=body.earliest_events,
        latest=body.latest_events,
        limit=body.limit,
        min_depth=body.min_depth,
    )
    return listed("events", events)
