"""Client-Server API, section "Profiles"."""

from __future__ import annotations

from client_api.endpoints import client_endpoints
from client_api.lookup_limits import count_lookup
from homeserver.errors import MissingParam
from homeserver.http.models import JsonBody, Path, RawReply, Reply, UserIdField
from homeserver.http.request import Request
from homeserver.services import Services
from homeserver.services.access_tokens import Requester

endpoints = client_endpoints()


class ProfilePath(Path):
    """A user's profile."""

    user_id: UserIdField


class FieldPath(ProfilePath):
    """A field of a user's profile."""

    key_name: str


@endpoints.get("/_matrix/client/v3/profile/{userId}", public=True)
async def get_user_profile(services: Services, path: ProfilePath, request: Request) -> RawReply:
    """Get a profile; what is not set is left out."""
    count_lookup(services, request, path.user_id)
    return RawReply.json(await services.lookups.profile(path.user_id))


@endpoints.get("/_matrix/client/v3/profile/{userId}/{keyName}", public=True)
async def get_profile_field(services: Services, path: FieldPath, request: Request) -> RawReply:
    """Get a field of a profile."""
    count_lookup(services, request, path.user_id)
    return RawReply.json({path.key_name: await services.lookups.profile_field(path.user_id, path.key_name)})


@endpoints.put("/_matrix/client/v3/profile/{userId}/{keyName}", rate_limit="profile")
async def set_profile_field(
    services: Services, requester: Requester, path: FieldPath, body: JsonBody
) -> Reply:
    """Set a field of one's own profile."""
    if path.key_name not in body:
        raise MissingParam(f"{path.key_name} is missing")
    value = body[path.key_name]
    await services.profile_changes.set_field(requester, path.user_id, path.key_name, value)
    return Reply()


@endpoints.delete("/_matrix/client/v3/profile/{userId}/{keyName}", rate_limit="profile")
async def delete_profile_field(services: Services, requester: Requester, path: FieldPath) -> Reply:
    """Unset a field of one's own profile."""
    await services.profile_changes.delete_field(requester, path.user_id, path.key_name)
    return Reply()
