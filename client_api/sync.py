"""Client-Server API, section "Syncing"."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from client_api.endpoints import client_endpoints
from homeserver.errors import InvalidParam
from homeserver.http.models import NotNegative, Query, RawReply
from homeserver.protocol.filters import Filter, parse_filter
from homeserver.protocol.strict_json import parse_json
from homeserver.services import Services
from homeserver.services.access_tokens import Requester
from homeserver.services.sync import SyncRequest

UNSTABLE: Final = "org.matrix.msc4222."

endpoints = client_endpoints()


class SyncQuery(Query):
    """From where on, how patiently and what a client wants to know."""

    filter: str | None = None
    since: str | None = None
    full_state: bool = False
    set_presence: str | None = None
    timeout: NotNegative = 0
    use_state_after: bool = False
    unstable_use_state_after: bool = Field(False, alias=f"{UNSTABLE}use_state_after")
    from_: str | None = None


@endpoints.get("/_matrix/client/v3/sync", cancellable=True)
async def sync(services: Services, requester: Requester, query: SyncQuery) -> RawReply:
    """Synchronise the client's state with the latest state on the server."""
    if query.from_ is not None:
        raise InvalidParam("from is no parameter of this endpoint: since is")
    request = SyncRequest(
        since=query.since,
        timeout_ms=query.timeout,
        full_state=query.full_state,
        filter=await _filter(services, requester, query.filter),
        state_after_key=_state_after_key(query),
    )
    return RawReply(await services.sync.sync(requester, request))


def _state_after_key(query: SyncQuery) -> str | None:
    """The key of the state after the timeline goes by the name of the parameter that asks for it."""
    if query.use_state_after:
        return "state_after"
    return f"{UNSTABLE}state_after" if query.unstable_use_state_after else None


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
