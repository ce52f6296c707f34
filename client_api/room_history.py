"""Client-Server API, sections "Getting events for a room" (its timeline) and "Event Context"."""

from __future__ import annotations

from client_api.endpoints import client_endpoints
from homeserver.errors import InvalidParam
from homeserver.http.models import EventIdField, NotNegative, Path, Query, RawReply, RoomIdField
from homeserver.protocol.errors import BadJson
from homeserver.protocol.filters import EventFilter, parse_event_filter
from homeserver.protocol.strict_json import parse_json
from homeserver.services import Services
from homeserver.services.access_tokens import Requester
from homeserver.services.room_history import Direction, PageRequest

endpoints = client_endpoints()


class RoomPath(Path):
    """A room."""

    room_id: RoomIdField


class EventPath(RoomPath):
    """An event of a room."""

    event_id: EventIdField


class MessagesQuery(Query):
    """Which part of a room's history is wanted; `dir` is required of those who may read the room."""

    from_: str | None = None
    to: str | None = None
    dir: Direction | None = None
    limit: NotNegative | None = None
    filter: str | None = None


class ContextQuery(Query):
    """How much around an event is wanted."""

    limit: NotNegative | None = None
    filter: str | None = None


@endpoints.get("/_matrix/client/v3/rooms/{roomId}/event/{eventId}", cancellable=True)
async def get_one_room_event(services: Services, requester: Requester, path: EventPath) -> RawReply:
    """Get a single event."""
    return RawReply.json(await services.room_history.event(requester, path.room_id, path.event_id))


@endpoints.get("/_matrix/client/v3/rooms/{roomId}/messages", cancellable=True)
async def get_room_events(
    services: Services, requester: Requester, path: RoomPath, query: MessagesQuery
) -> RawReply:
    """Get a page of a room's events."""
    request = PageRequest(query.dir, query.from_, query.to, query.limit, _event_filter(query.filter))
    page = await services.room_history.messages(requester, path.room_id, request)
    reply = {"chunk": page.chunk, "start": page.start, "end": page.end, "state": page.state}
    return RawReply.json({key: value for key, value in reply.items() if value is not None})


@endpoints.get("/_matrix/client/v3/rooms/{roomId}/context/{eventId}", cancellable=True)
async def get_event_context(
    services: Services, requester: Requester, path: EventPath, query: ContextQuery
) -> RawReply:
    """Get the events around an event."""
    context = await services.room_history.context(
        requester, path.room_id, path.event_id, query.limit, _event_filter(query.filter)
    )
    return RawReply.json(
        {
            "event": context.event,
            "events_before": context.events_before,
            "events_after": context.events_after,
            "start": context.start,
            "end": context.end,
            "state": context.state,
        }
    )


def _event_filter(text: str | None) -> EventFilter:
    """The filter in a query. Raises InvalidParam."""
    if not text:
        return EventFilter()
    try:
        return parse_event_filter(parse_json(text.encode()))
    except BadJson as error:
        raise InvalidParam(f"filter: {error}") from None
