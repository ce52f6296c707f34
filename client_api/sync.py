"""Client-Server API, section "Syncing"."""

from __future__ import annotations

from client_api.endpoints import client_endpoints
from homeserver.errors import InvalidParam
from homeserver.http.models import NotNegative, Query, RawReply
from homeserver.protocol.filters import Filter, parse_filter
from homeserver.protocol.strict_json import parse_json
from homeserver.services import Services
from homeserver.services.access_tokens import Requester
from homeserver.services.sync import SyncRequest

endpoints = client_endpoints()


class SyncQuery(Query):
    """From where on, how patiently and what a client wants to know."""

    filter: str | None = None
    since: str | None = None
    full_state: bool = False
    set_presence: str | None = None
    timeout: NotNegative = 0
    use_state_after: bool = False


@endpoints.get("/_matrix/client/v3/sync", cancellable=True)
async def sync(services: Services, requester: Requester, query: SyncQuery) -> RawReply:
    """Synchronise the client's state with the latest state on the server."""
    request = SyncRequest(
        since=query.since,
        timeout_ms=query.timeout,
        full_state=query.full_state,
        filter=await _filter(services, requester, query.filter),
        state_after_key="state_after" if query.use_state_after else None,
    )
    return RawReply(await services.sync.sync(requester, request))


async def _filter(services: Services, requester: Requester, text: str | None) -> Filter:
    """A filter that a request names by its ID, or holds as JSON."""
    if text is None:
        return Filter()
    if text.startswith("{"):
        return parse_filter(parse_json(text.encode()))
    found = await services.filters.find(requester, text)
    if found is None:
        raise InvalidParam("filter is neither JSON nor the ID of a filter of yours")
    return found
