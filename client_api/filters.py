"""Client-Server API, section "Filtering"."""

from __future__ import annotations

from typing import Final

from client_api.endpoints import client_endpoints
from homeserver.http.models import JsonBody, Path, RawReply, Reply, UserIdField
from homeserver.services import Services
from homeserver.services.access_tokens import Requester

endpoints = client_endpoints()

MAX_FILTER_BYTES: Final = 65536


class FiltersPath(Path):
    """A user's filters."""

    user_id: UserIdField


class FilterPath(FiltersPath):
    """One of a user's filters."""

    filter_id: str


class SavedFilter(Reply):
    """The ID of a filter."""

    filter_id: str


@endpoints.post("/_matrix/client/v3/user/{userId}/filter", max_body_bytes=MAX_FILTER_BYTES)
async def define_filter(
    services: Services, requester: Requester, path: FiltersPath, body: JsonBody
) -> SavedFilter:
    """Save a filter."""
    return SavedFilter(filter_id=await services.filters.save(requester, path.user_id, body))


@endpoints.get("/_matrix/client/v3/user/{userId}/filter/{filterId}")
async def get_filter(services: Services, requester: Requester, path: FilterPath) -> RawReply:
    """Get a filter that was saved."""
    return RawReply.json(await services.filters.definition(requester, path.user_id, path.filter_id))
